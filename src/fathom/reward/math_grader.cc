#include "fathom/reward/math_grader.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <vector>

namespace fathom {
namespace {

std::string strip(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

void replace_all(std::string* text, const std::string& from, const std::string& to) {
  for (size_t at = text->find(from); at != std::string::npos;
       at = text->find(from, at + to.size())) {
    text->replace(at, from.size(), to);
  }
}

/// Content between the brace at `open` and its partner, or nothing when unbalanced.
std::optional<std::string> braced(const std::string& text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return text.substr(open + 1, i - open - 1);
  }
  return std::nullopt;
}

std::string unwrap_text(const std::string& answer) {
  if (!answer.starts_with("\\text{")) return answer;
  const auto inside = braced(answer, 5);
  return inside && inside->size() + 7 == answer.size() ? *inside : answer;
}

bool is_integer(const std::string& text) {
  const size_t first = !text.empty() && text[0] == '-' ? 1 : 0;
  return text.size() > first &&
         std::all_of(text.begin() + static_cast<std::ptrdiff_t>(first), text.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0; });
}

/// \frac12 -> \frac{1}{2}, \frac1{72} -> \frac{1}{72}.
std::string fix_fractions(const std::string& text) {
  std::string out;
  size_t at = 0;
  for (;;) {
    const size_t found = text.find("\\frac", at);
    if (found == std::string::npos) return out + text.substr(at);
    out += text.substr(at, found - at) + "\\frac";
    at = found + 5;
    if (at >= text.size() || text[at] == '{') continue;
    if (at + 1 >= text.size()) continue;
    out += std::string("{") + text[at] + "}";
    if (text[at + 1] == '{') {
      at += 1;
    } else {
      out += std::string("{") + text[at + 1] + "}";
      at += 2;
    }
  }
}

/// \sqrt3 -> \sqrt{3}.
std::string fix_square_roots(const std::string& text) {
  std::string out;
  size_t at = 0;
  for (;;) {
    const size_t found = text.find("\\sqrt", at);
    if (found == std::string::npos) return out + text.substr(at);
    out += text.substr(at, found - at) + "\\sqrt";
    at = found + 5;
    if (at < text.size() && text[at] != '{') {
      out += std::string("{") + text[at] + "}";
      ++at;
    }
  }
}

/// "3/4" with two integers -> \frac{3}{4}.
std::string fix_slash(const std::string& text) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos || text.find('/', slash + 1) != std::string::npos) return text;
  const std::string a = text.substr(0, slash), b = text.substr(slash + 1);
  return is_integer(a) && is_integer(b) ? "\\frac{" + a + "}{" + b + "}" : text;
}

/// Second form: numbers. Percent and dollar signs, thousands commas, "x.0".
std::string numeric_form(std::string text) {
  text = unwrap_text(strip(text));
  replace_all(&text, "\\%", "");
  replace_all(&text, "\\$", "");
  replace_all(&text, "%", "");
  replace_all(&text, "$", "");
  replace_all(&text, "^\\circ", "");
  replace_all(&text, "^{\\circ}", "");
  replace_all(&text, ",\\!", "");
  if (text.size() >= 2 && text.front() == '{' && text.back() == '}') {
    text = text.substr(1, text.size() - 2);
  }
  replace_all(&text, " ", "");
  std::string plain;
  for (char c : text) {
    plain.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  }
  std::string digits = plain;
  std::erase(digits, ',');
  double value = 0.0;
  const auto [rest, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool is_number = error == std::errc() && rest == digits.data() + digits.size();
  if (is_number && is_integer(digits)) {
    const bool negative = digits[0] == '-';
    size_t first = negative ? 1 : 0;
    while (first + 1 < digits.size() && digits[first] == '0') ++first;
    const std::string magnitude = digits.substr(first);
    return negative && magnitude != "0" ? "-" + magnitude : magnitude;
  }
  if (is_number && std::fabs(value) < 1e15 && std::fabs(value - std::round(value)) < 1e-7) {
    return std::to_string(static_cast<long long>(std::round(value)));
  }
  return is_number ? digits : plain;
}

/// The elements of "(1, 2)" or "[1,2)", or the whole as one element. Brackets are kept in
/// `brackets`.
std::vector<std::string> elements(const std::string& text, std::string* brackets) {
  brackets->clear();
  const bool wrapped = text.size() > 2 && (text.front() == '(' || text.front() == '[') &&
                       (text.back() == ')' || text.back() == ']') &&
                       text.find(',') != std::string::npos;
  if (!wrapped) return {text};
  *brackets = {text.front(), text.back()};
  std::vector<std::string> parts;
  std::string part;
  for (char c : text.substr(1, text.size() - 2) + ",") {
    if (c == ',') {
      parts.push_back(part);
      part.clear();
    } else {
      part.push_back(c);
    }
  }
  return parts;
}

bool same_numbers(const std::string& given, const std::string& label) {
  std::string given_brackets, label_brackets;
  const std::vector<std::string> a = elements(strip(given), &given_brackets);
  const std::vector<std::string> b = elements(strip(label), &label_brackets);
  if (a.size() != b.size() || (b.size() > 1 && given_brackets != label_brackets)) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const std::string x = numeric_form(a[i]);
    if (x.empty() || x != numeric_form(b[i])) return false;
  }
  return true;
}

}  // namespace

std::optional<std::string> last_boxed_answer(const std::string& text) {
  size_t at = text.rfind("\\boxed");
  size_t length = 6;
  if (at == std::string::npos) {
    at = text.rfind("\\fbox");
    length = 5;
  }
  if (at == std::string::npos) return std::nullopt;
  if (at + length >= text.size() || text[at + length] != '{') return std::nullopt;
  return braced(text, at + length);
}

std::string normalize_math_answer(const std::string& answer) {
  std::string s = unwrap_text(strip(answer));
  replace_all(&s, "\n", "");
  replace_all(&s, "\\!", "");
  replace_all(&s, "\\\\", "\\");
  replace_all(&s, "tfrac", "frac");
  replace_all(&s, "dfrac", "frac");
  replace_all(&s, "\\left", "");
  replace_all(&s, "\\right", "");
  replace_all(&s, "^{\\circ}", "");
  replace_all(&s, "^\\circ", "");
  replace_all(&s, "\\$", "");
  const size_t unit = s.find("\\text{ ");
  if (unit != std::string::npos) {
    // Two unit texts: the published rule gives up and compares what it got.
    if (s.find("\\text{ ", unit + 1) != std::string::npos) return strip(answer);
    s = s.substr(0, unit);
  }
  replace_all(&s, "\\%", "");
  replace_all(&s, " .", " 0.");
  replace_all(&s, "{.", "{0.");
  if (s.empty()) return s;
  if (s[0] == '.') s = "0" + s;
  const size_t equals = s.find('=');
  if (equals != std::string::npos && s.find('=', equals + 1) == std::string::npos &&
      strip(s.substr(0, equals)).size() <= 2) {
    s = s.substr(equals + 1);
  }
  s = fix_square_roots(s);
  replace_all(&s, " ", "");
  s = fix_fractions(s);
  if (s == "0.5") s = "\\frac{1}{2}";
  return fix_slash(s);
}

bool math_answer_is_correct(const std::string& response, const std::string& label_text) {
  std::string label = label_text;
  if (label.find("\\boxed") != std::string::npos) label = last_boxed_answer(label).value_or("");
  if (label.empty()) return false;
  const std::optional<std::string> given = last_boxed_answer(response);
  if (!given) return false;
  return normalize_math_answer(*given) == normalize_math_answer(label) ||
         same_numbers(*given, label);
}

}  // namespace fathom
