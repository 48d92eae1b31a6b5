#include "fathom/hub/patterns.h"

#include <algorithm>
#include <cstdint>

#include "fathom/base/error.h"

namespace fathom::hub {
namespace {

// Code points; a byte that is not UTF-8 stands for itself.
std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> points;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0xC2 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 1;
    uint32_t point = length == 1 ? lead : lead & (0x7Fu >> length);
    bool is_whole = i + length <= text.size();
    for (size_t k = 1; is_whole && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      is_whole = (next & 0xC0) == 0x80;
      point = point << 6 | (next & 0x3Fu);
    }
    points.push_back(is_whole ? point : 0x110000u + lead);
    i += is_whole ? length : 1;
  }
  return points;
}

// Matches one code point against the set that begins behind '['. @return the index behind ']', or 0
// when the bracket is not closed and stands for itself.
size_t match_set(const std::vector<uint32_t>& pattern, size_t at, uint32_t point, bool* matched) {
  const bool negated = at < pattern.size() && pattern[at] == '!';
  size_t i = at + (negated ? 1 : 0);
  size_t close = i < pattern.size() && pattern[i] == ']' ? i + 1 : i;
  while (close < pattern.size() && pattern[close] != ']') ++close;
  if (close >= pattern.size()) return 0;
  bool found = false;
  while (i < close) {
    if (i + 2 < close && pattern[i + 1] == '-') {
      found = found || (pattern[i] <= point && point <= pattern[i + 2]);
      i += 3;
    } else {
      found = found || pattern[i] == point;
      ++i;
    }
  }
  *matched = found != negated;
  return close + 1;
}

bool is_windows_device_path(std::string_view segment) {
  return segment.size() >= 2 && segment[1] == ':' &&
         ((segment[0] | 32) >= 'a' && (segment[0] | 32) <= 'z');
}

}  // namespace

bool matches_pattern(std::string_view path_text, std::string_view pattern_text) {
  const std::vector<uint32_t> path = code_points(path_text), pattern = code_points(pattern_text);
  // One star at a time can be stretched: the last one seen.
  size_t p = 0, s = 0, star = SIZE_MAX, star_s = 0;
  while (s < path.size()) {
    bool matched = false;
    size_t next = p + 1;
    if (p < pattern.size()) {
      if (pattern[p] == '*') {
        star = p++;
        star_s = s;
        continue;
      }
      if (pattern[p] == '?') {
        matched = true;
      } else if (pattern[p] == '[') {
        const size_t behind = match_set(pattern, p + 1, path[s], &matched);
        if (behind == 0)
          matched = path[s] == '[';
        else
          next = behind;
      } else {
        matched = pattern[p] == path[s];
      }
    }
    if (matched) {
      p = next;
      ++s;
    } else if (star != SIZE_MAX) {
      p = star + 1;
      s = ++star_s;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::string literal_pattern(const std::string& path) {
  std::string pattern;
  for (const char c : path)
    pattern += c == '*' || c == '?' || c == '[' ? str_cat('[', c, ']') : std::string(1, c);
  return pattern;
}

bool is_wanted(const std::string& path, const std::vector<std::string>& include,
               const std::vector<std::string>& exclude) {
  const auto matches = [&](const std::string& pattern) {
    return matches_pattern(path, pattern.ends_with('/') ? pattern + "*" : pattern);
  };
  if (!include.empty() && std::none_of(include.begin(), include.end(), matches)) return false;
  return std::none_of(exclude.begin(), exclude.end(), matches);
}

void check_path_is_safe(const std::string& path) {
  const auto bad = [&](const char* rule) {
    std::string shown = path.substr(0, 200);
    for (char& c : shown)
      if (static_cast<unsigned char>(c) < ' ' || c == 127) c = '?';
    throw UserError(str_cat("the repository has a file called '", shown, "': ", rule,
                            "; nothing of it was written"));
  };
  if (path.empty()) bad("its name is empty");
  if (path.front() == '/' || path.front() == '\\') bad("an absolute path");
  for (const char c : path)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) bad("a control character in its name");
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view segment = std::string_view(path).substr(begin, end - begin);
    if (segment.empty() || segment == ".") bad("an empty part in its path");
    if (is_windows_device_path(segment)) bad("a drive in its path");
    for (size_t b = 0; b <= segment.size();) {
      const size_t e = std::min(segment.find('\\', b), segment.size());
      if (segment.substr(b, e - b) == "..") bad("'..' leads out of the directory");
      b = e + 1;
    }
    if (segment.front() == '\\') bad("an absolute path");
    begin = end + 1;
  }
}

}  // namespace fathom::hub
