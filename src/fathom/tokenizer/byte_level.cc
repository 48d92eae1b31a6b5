#include "fathom/tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

constexpr uint32_t kAlphabetEnd = 0x144;  // the last of the 68 stand-ins is U+0143

struct ByteAlphabet {
  std::array<uint32_t, 256> code_point{};
  std::array<int16_t, kAlphabetEnd> byte{};
};

// Printable Latin-1 stands for itself; the other 68 bytes get U+0100, U+0101, ... in order.
constexpr ByteAlphabet make_alphabet() {
  ByteAlphabet alphabet;
  for (auto& b : alphabet.byte) b = -1;
  uint32_t next = 0x100;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    alphabet.code_point[b] = printable ? b : next++;
    alphabet.byte[alphabet.code_point[b]] = static_cast<int16_t>(b);
  }
  return alphabet;
}

constexpr ByteAlphabet kAlphabet = make_alphabet();

}  // namespace

std::optional<std::string> bytes_of_spelled_token(std::string_view spelled) {
  std::string bytes;
  for (size_t at = 0; at < spelled.size();) {
    const uint32_t c = next_code_point(spelled, at);
    if (c >= kAlphabetEnd || kAlphabet.byte[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte[c]));
  }
  return bytes;
}

std::string spell_token_bytes(std::string_view bytes) {
  std::string spelled;
  for (const char b : bytes) append_utf8(spelled, kAlphabet.code_point[static_cast<uint8_t>(b)]);
  return spelled;
}

}  // namespace fathom
