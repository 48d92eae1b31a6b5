#include "fathom/tokenizer/utf8.h"

#include <cstring>

namespace fathom {
namespace {

struct Sequence {
  size_t num_bytes;  // bytes of the sequence, or of the maximal broken part
  bool valid;
};

// The sequence that starts at bytes[at]. Only the second byte has limits of its own (they keep out
// overlong forms, surrogates and values past U+10FFFF); later ones are 80..BF.
Sequence read_sequence(std::string_view bytes, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t first = byte(at);
  if (first < 0x80) return {1, true};
  size_t length;
  uint8_t low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return {1, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (at + i >= bytes.size() || byte(at + i) < low || byte(at + i) > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true};
}

// Length of the run of ASCII at the start, counted eight bytes at a time.
size_t ascii_run(std::string_view bytes, size_t at) {
  size_t end = at;
  while (end + 8 <= bytes.size()) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + end, 8);
    if ((word & 0x8080808080808080ull) != 0) break;
    end += 8;
  }
  return end - at;
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    at += ascii_run(bytes, at);
    if (at >= bytes.size()) break;
    const Sequence sequence = read_sequence(bytes, at);
    if (!sequence.valid) return at;
    at += sequence.num_bytes;
  }
  return std::nullopt;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const Sequence sequence = read_sequence(bytes, at);
    if (sequence.valid) {
      out.append(bytes.substr(at, sequence.num_bytes));
    } else {
      out.append("\xEF\xBF\xBD");
    }
    at += sequence.num_bytes;
  }
  return out;
}

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (c >> 6)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (c >> 12)));
    out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | (c >> 18)));
    out.push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

uint32_t next_code_point(std::string_view text, size_t& position) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const size_t at = position;
  const uint32_t first = byte(at);
  if (first < 0x80) {
    position += 1;
    return first;
  }
  if (first < 0xE0) {
    position += 2;
    return ((first & 0x1F) << 6) | (byte(at + 1) & 0x3F);
  }
  if (first < 0xF0) {
    position += 3;
    return ((first & 0x0F) << 12) | ((byte(at + 1) & 0x3F) << 6) | (byte(at + 2) & 0x3F);
  }
  position += 4;
  return ((first & 0x07) << 18) | ((byte(at + 1) & 0x3F) << 12) | ((byte(at + 2) & 0x3F) << 6) |
         (byte(at + 3) & 0x3F);
}

}  // namespace fathom
