#include "fathom/checkpoint/zip_crc.h"

#include <immintrin.h>

#include <array>

namespace fathom {
namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1u) != 0 ? 0xEDB88320u : 0u);
    t[i] = c;
  }
  return t;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

uint32_t by_table(uint32_t state, const uint8_t* p, int64_t n) {
  for (; n > 0; --n, ++p) state = (state >> 8) ^ kTable[(state ^ *p) & 0xFF];
  return state;
}

// Folding by carry-less products (V. Gopal et al., "Fast CRC Computation for Generic Polynomials
// Using PCLMULQDQ Instruction", Intel 2009), with its constants for the reflected polynomial.
// n >= 64 and a multiple of 16.
__attribute__((target("pclmul,sse4.1"))) uint32_t by_folding(uint32_t state, const uint8_t* p,
                                                             int64_t n) {
  const auto load = [](const uint8_t* at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  };
  __m128i k = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
  __m128i x1 = _mm_xor_si128(load(p), _mm_cvtsi32_si128(static_cast<int>(state)));
  __m128i x2 = load(p + 16), x3 = load(p + 32), x4 = load(p + 48);
  p += 64;
  n -= 64;
  for (; n >= 64; n -= 64, p += 64) {
    const __m128i a1 = _mm_clmulepi64_si128(x1, k, 0x00), a2 = _mm_clmulepi64_si128(x2, k, 0x00),
                  a3 = _mm_clmulepi64_si128(x3, k, 0x00), a4 = _mm_clmulepi64_si128(x4, k, 0x00);
    x1 = _mm_xor_si128(_mm_clmulepi64_si128(x1, k, 0x11), _mm_xor_si128(a1, load(p)));
    x2 = _mm_xor_si128(_mm_clmulepi64_si128(x2, k, 0x11), _mm_xor_si128(a2, load(p + 16)));
    x3 = _mm_xor_si128(_mm_clmulepi64_si128(x3, k, 0x11), _mm_xor_si128(a3, load(p + 32)));
    x4 = _mm_xor_si128(_mm_clmulepi64_si128(x4, k, 0x11), _mm_xor_si128(a4, load(p + 48)));
  }
  k = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  for (const __m128i next : {x2, x3, x4}) {
    const __m128i low = _mm_clmulepi64_si128(x1, k, 0x00);
    x1 = _mm_xor_si128(_mm_clmulepi64_si128(x1, k, 0x11), _mm_xor_si128(low, next));
  }
  for (; n >= 16; n -= 16, p += 16) {
    const __m128i low = _mm_clmulepi64_si128(x1, k, 0x00);
    x1 = _mm_xor_si128(_mm_clmulepi64_si128(x1, k, 0x11), _mm_xor_si128(low, load(p)));
  }
  // 128 bits to 64, to 32, then Barrett's reduction.
  const __m128i mask = _mm_setr_epi32(~0, 0, ~0, 0);
  x1 = _mm_xor_si128(_mm_srli_si128(x1, 8), _mm_clmulepi64_si128(x1, k, 0x10));
  k = _mm_set_epi64x(0, 0x0163cd6124);
  x1 = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(x1, mask), k, 0x00), _mm_srli_si128(x1, 4));
  k = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  __m128i q = _mm_clmulepi64_si128(_mm_and_si128(x1, mask), k, 0x10);
  q = _mm_clmulepi64_si128(_mm_and_si128(q, mask), k, 0x00);
  return static_cast<uint32_t>(_mm_extract_epi32(_mm_xor_si128(x1, q), 1));
}

// Product of two polynomials modulo the CRC's, bits reversed: bit 31 is x^0.
uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if ((a >> bit & 1u) != 0) product ^= b;
    b = (b >> 1) ^ ((b & 1u) != 0 ? 0xEDB88320u : 0u);
  }
  return product;
}

}  // namespace

uint32_t crc32_combine(uint32_t first, uint32_t second, int64_t second_bytes) {
  // Zeros behind the first piece multiply it by x^(8 n); square and multiply over the bits of n.
  uint32_t power = 0x00800000u;  // x^8
  uint32_t factor = 0x80000000u;
  for (int64_t n = second_bytes; n > 0; n >>= 1) {
    if ((n & 1) != 0) factor = multiply(factor, power);
    power = multiply(power, power);
  }
  return multiply(factor, first) ^ second;
}

uint32_t crc32(uint32_t crc, const void* data, int64_t num_bytes) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  uint32_t state = ~crc;
  if (num_bytes >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
    const int64_t folded = num_bytes / 16 * 16;
    state = by_folding(state, p, folded);
    p += folded;
    num_bytes -= folded;
  }
  return ~by_table(state, p, num_bytes);
}

}  // namespace fathom
