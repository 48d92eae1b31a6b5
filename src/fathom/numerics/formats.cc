#include "fathom/numerics/formats.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "fathom/base/error.h"

namespace fathom {
namespace {

constexpr int64_t kRowGrain = 32;
constexpr float kWeightAmaxFloor = 1e-10f;
constexpr float kFp8AmaxFloor = 1e-4f;
constexpr float kFp4AmaxFloor = 6 * 0x1p-126f;
constexpr float kFp8Max = 448, kFp4Max = 6;

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// 2^ceil(log2 x) for x > 0.
float power_of_two_above(float x) {
  FATHOM_ASSERT(x > 0, "x = ", x);
  if (x <
      std::numeric_limits<float>::min()) {  // subnormal: its exponent is not in the exponent field
    int exponent;
    const float fraction = std::frexp(x, &exponent);  // x = fraction * 2^exponent, in [1/2, 1)
    return std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
  }
  const uint32_t bits = bits_of(x);
  return float_of((bits & 0x7F800000u) + ((bits & 0x007FFFFFu) != 0 ? 0x00800000u : 0));
}

/// The largest magnitude; NaN elements do not count.
float largest_magnitude(const float* x, int64_t n) {
  float amax = 0;
  for (int64_t i = 0; i < n; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

float decode_scale(float scale) { return scale; }
float decode_scale(uint8_t scale) { return e8m0_to_f32(scale); }

// Eight fp32 values to BF16 codes in the low halves, as f32_to_bf16 does it for what is no NaN.
__m256i bf16_codes(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd),
                           16);
}

// E4M3 codes times one scale, to BF16. A code's seven low bits shifted to the top of the fp32
// mantissa are its value times 2^-120, subnormals included.
void dequantise_e4m3_run(const uint8_t* codes, int64_t n, float scale, uint16_t* out) {
  const __m256 unbias = _mm256_set1_ps(0x1p120f), factor = _mm256_set1_ps(scale);
  const __m256i low = _mm256_set1_epi32(0x7F), high = _mm256_set1_epi32(0x80);
  const bool finite = std::isfinite(scale);
  int64_t i = 0;
  for (; finite && i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
    const __m128i nan =
        _mm_cmpeq_epi8(_mm_and_si128(bytes, _mm_set1_epi8(0x7F)), _mm_set1_epi8(0x7F));
    if (_mm_movemask_epi8(nan) != 0) {
      for (int64_t k = i; k < i + 16; ++k) out[k] = f32_to_bf16(e4m3_to_f32(codes[k]) * scale);
      continue;
    }
    __m256i half[2];
    for (int h = 0; h < 2; ++h) {
      const __m256i wide = _mm256_cvtepu8_epi32(h == 0 ? bytes : _mm_srli_si128(bytes, 8));
      const __m256i magnitude = _mm256_slli_epi32(_mm256_and_si256(wide, low), 20);
      const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(wide, high), 24);
      const __m256 value = _mm256_castsi256_ps(_mm256_or_si256(
          _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(magnitude), unbias)), sign));
      half[h] = bf16_codes(_mm256_mul_ps(value, factor));
    }
    const __m256i packed =
        _mm256_permute4x64_epi64(_mm256_packus_epi32(half[0], half[1]), 0b11011000);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), packed);
  }
  for (; i < n; ++i) out[i] = f32_to_bf16(e4m3_to_f32(codes[i]) * scale);
}

// The sixteen BF16 codes of FP4 under every E8M0 scale, low and high bytes apart for a byte
// shuffle.
struct Fp4Tables {
  struct Row {
    uint8_t low[16], high[16];
  };
  Row rows[256];
};

Fp4Tables make_fp4_tables() {
  Fp4Tables tables;
  for (int scale = 0; scale < 256; ++scale) {
    for (int code = 0; code < 16; ++code) {
      const uint16_t bits = f32_to_bf16(e2m1_to_f32(static_cast<uint8_t>(code)) *
                                        e8m0_to_f32(static_cast<uint8_t>(scale)));
      tables.rows[scale].low[code] = static_cast<uint8_t>(bits);
      tables.rows[scale].high[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
  return tables;
}

// One group: 16 bytes of codes to 32 BF16 values.
void dequantise_e2m1_group(const uint8_t* packed, const Fp4Tables::Row& row, uint16_t* out) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
  const __m128i nibble = _mm_set1_epi8(0x0F);
  const __m128i even = _mm_and_si128(bytes, nibble);
  const __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row.low));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row.high));
  for (int half = 0; half < 2; ++half) {
    const __m128i codes = half == 0 ? _mm_unpacklo_epi8(even, odd) : _mm_unpackhi_epi8(even, odd);
    const __m128i l = _mm_shuffle_epi8(low, codes), h = _mm_shuffle_epi8(high, codes);
    auto* to = reinterpret_cast<__m128i*>(out + 16 * half);
    _mm_storeu_si128(to, _mm_unpacklo_epi8(l, h));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(l, h));
  }
}

template <typename Scale>
void dequantise_fp8_rows(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* codes,
                         const Scale* scales, uint16_t* out) {
  FATHOM_ASSERT(M >= 0 && K >= 0, "M = ", M, ", K = ", K);
  const int64_t blocks = ceil_div(K, kFp8BlockSize);
  ctx.threads->parallel_for(M, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t b = 0; b < blocks; ++b) {
        const float scale = decode_scale(scales[r / kFp8BlockSize * blocks + b]);
        const int64_t first = b * kFp8BlockSize, last = std::min(K, first + kFp8BlockSize);
        dequantise_e4m3_run(codes + r * K + first, last - first, scale, out + r * K + first);
      }
    }
  });
}

void encode_scale(float amax, float* scale) { *scale = amax / kFp8Max; }
void encode_scale(float amax, uint8_t* scale) { *scale = f32_to_e8m0(fp8_power_scale(amax)); }

template <typename Scale>
void quantise_fp8_blocks(const ExecContext& ctx, int64_t M, int64_t K, const float* w,
                         uint8_t* codes, Scale* scales) {
  FATHOM_ASSERT(M >= 0 && K >= 0, "M = ", M, ", K = ", K);
  const int64_t block_rows = ceil_div(M, kFp8BlockSize), block_cols = ceil_div(K, kFp8BlockSize);
  ctx.threads->parallel_for(block_rows * block_cols, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block / block_cols * kFp8BlockSize;
      const int64_t col = block % block_cols * kFp8BlockSize;
      const int64_t last_row = std::min(M, row + kFp8BlockSize);
      const int64_t last_col = std::min(K, col + kFp8BlockSize);
      float amax = kWeightAmaxFloor;
      for (int64_t r = row; r < last_row; ++r) {
        for (int64_t c = col; c < last_col; ++c) {
          const float value = w[r * K + c];
          FATHOM_CHECK(std::isfinite(value), "element [", r, ", ", c, "] is ", value,
                       " and cannot be quantised to FP8");
          amax = std::max(amax, std::fabs(value));
        }
      }
      encode_scale(amax, scales + block);
      const float scale = decode_scale(scales[block]);
      for (int64_t r = row; r < last_row; ++r) {
        for (int64_t c = col; c < last_col; ++c) {
          codes[r * K + c] = f32_to_e4m3(w[r * K + c] / scale);
        }
      }
    }
  });
}

}  // namespace

float f16_to_f32(uint16_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x8000) << 16;
  const uint32_t exponent = (code >> 10) & 31u, mantissa = code & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // exact
    return float_of(bits_of(magnitude) | sign);
  }
  const uint32_t wide_exponent = exponent == 31 ? 255u : exponent + 112u;
  // A NaN is made quiet, as the processor's conversion does.
  const uint32_t quiet = exponent == 31 && mantissa != 0 ? 0x00400000u : 0u;
  return float_of(sign | (wide_exponent << 23) | (mantissa << 13) | quiet);
}

uint8_t f32_to_e4m3(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint8_t>(sign | 0x7Fu);
  const float a = float_of(magnitude);
  if (a >= kFp8Max) return static_cast<uint8_t>(sign | 0x7Eu);
  if (a < 0x1p-6f) {
    // Subnormal codes count steps of 2^-9, which is the last place of 2^14: the addition rounds.
    return static_cast<uint8_t>(sign | (bits_of(a + 0x1p14f) - bits_of(0x1p14f)));
  }
  // Keep three mantissa bits; a carry moves into the exponent as it should. 120 = 127 - 7.
  const uint32_t rounded = (magnitude + 0x7FFFFu + ((magnitude >> 20) & 1u)) >> 20;
  return static_cast<uint8_t>(sign | (rounded - (120u << 3)));
}

uint8_t f32_to_e8m0(float power_of_two) {
  const uint32_t bits = bits_of(power_of_two);
  if (bits == 0x00400000u) return 0;  // 2^-127
  const uint32_t exponent = bits >> 23;
  FATHOM_ASSERT((bits & 0x007FFFFFu) == 0 && exponent >= 1 && exponent <= 254, power_of_two,
                " is not a power of two in the range of E8M0");
  return static_cast<uint8_t>(exponent);
}

uint8_t f32_to_e2m1(float x) {
  FATHOM_ASSERT(!std::isnan(x), "FP4 has no NaN");
  const float a = std::fabs(x);
  // Midpoints between neighbours; a tie goes to the even code.
  const int code = a <= 0.25f   ? 0
                   : a < 0.75f  ? 1
                   : a <= 1.25f ? 2
                   : a < 1.75f  ? 3
                   : a <= 2.5f  ? 4
                   : a < 3.5f   ? 5
                   : a <= 5.0f  ? 6
                                : 7;
  return static_cast<uint8_t>(code | (std::signbit(x) ? 8 : 0));
}

bool has_nan_scale(const float* scales, int64_t n) {
  return std::any_of(scales, scales + n, [](float s) { return std::isnan(s); });
}

bool has_nan_scale(const uint8_t* e8m0_scales, int64_t n) {
  return std::any_of(e8m0_scales, e8m0_scales + n, [](uint8_t s) { return s == 255; });
}

void dequantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* codes,
                    const float* scales, uint16_t* out) {
  dequantise_fp8_rows(ctx, M, K, codes, scales, out);
}

void dequantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* codes,
                    const uint8_t* e8m0_scales, uint16_t* out) {
  dequantise_fp8_rows(ctx, M, K, codes, e8m0_scales, out);
}

void dequantise_fp4(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* packed,
                    const uint8_t* e8m0_scales, uint16_t* out) {
  FATHOM_ASSERT(M >= 0 && K >= 0 && K % kFp4GroupSize == 0, "M = ", M, ", K = ", K);
  static const Fp4Tables tables = make_fp4_tables();
  ctx.threads->parallel_for(M, kRowGrain, [&](int64_t begin, int64_t end) {
    const int64_t groups = K / kFp4GroupSize;
    for (int64_t group = begin * groups; group < end * groups; ++group) {
      dequantise_e2m1_group(packed + group * kFp4GroupSize / 2, tables.rows[e8m0_scales[group]],
                            out + group * kFp4GroupSize);
    }
  });
}

void quantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const float* w, uint8_t* codes,
                  float* scales) {
  quantise_fp8_blocks(ctx, M, K, w, codes, scales);
}

void quantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const float* w, uint8_t* codes,
                  uint8_t* e8m0_scales) {
  quantise_fp8_blocks(ctx, M, K, w, codes, e8m0_scales);
}

float fp8_power_scale(float amax) { return power_of_two_above(amax * (1 / kFp8Max)); }

float fp4_power_scale(float amax) { return power_of_two_above(amax * (1 / kFp4Max)); }

void simulate_fp8(const float* x, int64_t n, int64_t block, float* out) {
  FATHOM_ASSERT(block >= 1, "block = ", block);
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(n, begin + block);
    const float amax = largest_magnitude(x + begin, end - begin);
    const float scale = fp8_power_scale(std::max(amax, kFp8AmaxFloor));
    for (int64_t i = begin; i < end; ++i) {
      out[i] = round_to_bf16(e4m3_to_f32(f32_to_e4m3(x[i] / scale)) * scale);
    }
  }
}

void simulate_fp4(const float* x, int64_t n, float* out) {
  for (int64_t begin = 0; begin < n; begin += kFp4GroupSize) {
    const int64_t end = std::min(n, begin + kFp4GroupSize);
    const float amax = largest_magnitude(x + begin, end - begin);
    const float scale = fp4_power_scale(std::max(amax, kFp4AmaxFloor));
    for (int64_t i = begin; i < end; ++i) {
      const float scaled = x[i] / scale;
      out[i] =
          std::isnan(scaled) ? scaled : round_to_bf16(e2m1_to_f32(f32_to_e2m1(scaled)) * scale);
    }
  }
}

}  // namespace fathom
