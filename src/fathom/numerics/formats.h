// Small number formats of checkpoints and caches: BF16, F16, FP8 E4M3FN, scales E8M0, FP4 E2M1.
// Conversions to smaller formats round once, to nearest with ties to the even code.
// Not for files that are compiled once per instruction set (simd.h): these functions are plain.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

#include "fathom/base/exec_context.h"

namespace fathom {

// ---- One value ----------------------------------------------------------------------------------

inline float bf16_to_f32(uint16_t code) {
  const uint32_t bits = static_cast<uint32_t>(code) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// NaN gives a quiet NaN of the same sign; values beyond the largest finite one give infinity.
inline uint16_t f32_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded);
}

/// x rounded to BF16, as fp32.
inline float round_to_bf16(float x) { return bf16_to_f32(f32_to_bf16(x)); }

float f16_to_f32(uint16_t code);

constexpr std::array<float, 256> make_e4m3_values() {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    // Subnormals are mantissa * 2^-9; normals (8 + mantissa) * 2^(exponent - 10).
    float value = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) * 0x1p-9f;
    for (int i = 1; i < exponent; ++i) value *= 2;
    if ((code & 0x7F) == 0x7F) value = std::numeric_limits<float>::quiet_NaN();
    values[static_cast<size_t>(code)] = (code & 0x80) != 0 ? -value : value;
  }
  return values;
}
inline constexpr std::array<float, 256> kE4m3Values = make_e4m3_values();
inline constexpr float kE2m1Magnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

/// E4M3FN: bias 7, largest 448, smallest subnormal 2^-9, no infinity, NaN = 0x7F and 0xFF.
inline float e4m3_to_f32(uint8_t code) { return kE4m3Values[code]; }
/// Values beyond +-448 (infinities too) give +-448; NaN gives NaN of the same sign.
uint8_t f32_to_e4m3(float x);

/// 2^(code - 127); code 0 is the fp32 subnormal 2^-127, 255 is NaN.
inline float e8m0_to_f32(uint8_t code) {
  const uint32_t bits = code == 0     ? 0x00400000u
                        : code == 255 ? 0x7FC00000u
                                      : static_cast<uint32_t>(code) << 23;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
/// The code of a power of two from 2^-127 to 2^127. Errors: InternalError for any other value.
uint8_t f32_to_e8m0(float power_of_two);

/// FP4 E2M1, the low four bits of `code`: 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign.
inline float e2m1_to_f32(uint8_t code) {
  const float magnitude = kE2m1Magnitudes[code & 7];
  return (code & 8) != 0 ? -magnitude : magnitude;
}
/// Values beyond +-6 give +-6. Errors: InternalError for NaN, which the format cannot express.
uint8_t f32_to_e2m1(float x);

// ---- Quantised matrices -------------------------------------------------------------------------
// FP8: codes [M, K], one scale for each block of 128 x 128: scales [ceil(M/128), ceil(K/128)].
// FP4: two codes a byte [M, K/2], low half = even column; one E8M0 scale for 32 columns: [M, K/32].
// The value is code times scale.

constexpr int64_t kFp8BlockSize = 128;
constexpr int64_t kFp4GroupSize = 32;

/// Whether any scale is NaN (E8M0: code 255). The functions below would spread it silently over a
/// block, so readers refuse such a checkpoint first.
bool has_nan_scale(const float* scales, int64_t n);
bool has_nan_scale(const uint8_t* e8m0_scales, int64_t n);

/// out [M, K] in BF16 bits: the fp32 product of code and scale, rounded once. NaN codes stay NaN.
void dequantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* codes,
                    const float* scales, uint16_t* out);
void dequantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* codes,
                    const uint8_t* e8m0_scales, uint16_t* out);
/// K must be a multiple of 32.
void dequantise_fp4(const ExecContext& ctx, int64_t M, int64_t K, const uint8_t* packed,
                    const uint8_t* e8m0_scales, uint16_t* out);

/// Quantises w [M, K] to FP8: codes e4m3(w / scale) with scale = amax / 448, amax = the largest
/// magnitude of the block, at least 1e-10.
/// Errors: UserError that names the element when w is not finite.
void quantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const float* w, uint8_t* codes,
                  float* scales);
/// The same with scales that are powers of two: fp8_power_scale(amax).
void quantise_fp8(const ExecContext& ctx, int64_t M, int64_t K, const float* w, uint8_t* codes,
                  uint8_t* e8m0_scales);

// ---- Simulated quantisation ---------------------------------------------------------------------

/// 2^ceil(log2(amax * fp32(1/448))), exact: the exponent of that fp32 product, plus one when its
/// mantissa is not zero. (Dividing by 448 instead picks other exponents at powers of two.)
float fp8_power_scale(float amax);
/// 2^ceil(log2(amax * fp32(1/6))), in the same way.
float fp4_power_scale(float amax);

/// Rounds x [n], cut into blocks of `block` (64 or 128; the last may be short), through E4M3 with a
/// power-of-two scale (amax at least 1e-4) and back; the results are BF16 values held in fp32.
/// out may be x. A NaN stays NaN and does not disturb its block; an infinity makes its block NaN.
void simulate_fp8(const float* x, int64_t n, int64_t block, float* out);
/// The same through E2M1 in blocks of 32 (amax at least 6 * 2^-126).
void simulate_fp4(const float* x, int64_t n, float* out);

}  // namespace fathom
