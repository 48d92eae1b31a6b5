// Reading stored entries (entry_format.h) and rounding to FP8 in kernels of a CUDA device, with the
// bits of entry_decode.h and quant_cpu.cc.
#pragma once

#include "fathom/kernels/quant/entry_format.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {

__device__ inline float e4m3_value(uint8_t code) {
  const float magnitude = __uint_as_float(static_cast<uint32_t>(code & 0x7F) << 20) * 0x1p120f;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  const uint32_t value = (code & 0x7F) == 0x7F ? 0x7FC00000u : __float_as_uint(magnitude);
  return __uint_as_float(sign | value);
}
__device__ inline float e8m0_value(uint8_t code) {
  return __uint_as_float(code == 0     ? 0x00400000u
                         : code == 255 ? 0x7FC00000u
                                       : static_cast<uint32_t>(code) << 23);
}

/// Channel i of a stored entry.
__device__ inline float entry_channel(const EntryFormat& f, const uint8_t* entry, int64_t i) {
  if (f.kind == EntryKind::kF32) return reinterpret_cast<const float*>(entry)[i];
  if (f.kind == EntryKind::kBf16) {
    return __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(entry)[i])
                           << 16);
  }
  const int64_t num_bf16 = f.width - f.fp8_channels;
  if (i < f.fp8_channels) {
    const uint8_t scale = entry[f.fp8_channels + 2 * num_bf16 + i / f.fp8_block];
    return e4m3_value(entry[i]) * e8m0_value(scale);
  }
  // The codes may start at an odd byte.
  const uint8_t* code = entry + f.fp8_channels + 2 * (i - f.fp8_channels);
  return __uint_as_float((static_cast<uint32_t>(code[0]) | static_cast<uint32_t>(code[1]) << 8)
                         << 16);
}

__device__ inline const uint8_t* entry_address(const KeyPages& pages, int64_t e) {
  return static_cast<const uint8_t*>(pages.pages[e / pages.entries_per_page]) +
         e % pages.entries_per_page * pages.format.num_bytes;
}

/// 2^ceil(log2(amax * fp32(1/448))) for a normal product; infinity for an infinite amax.
__device__ inline float power_scale(float amax) {
  uint32_t b = __float_as_uint(amax * (1 / 448.0f));
  b = (b & 0x7F800000u) + ((b & 0x007FFFFFu) != 0 ? 0x00800000u : 0);
  return __uint_as_float(b);
}

/// x rounded to the E4M3 grid; beyond +-448 is +-448, NaN stays NaN.
__device__ inline float round_e4m3(float x) {
  const float a = fabsf(x);
  const uint32_t bits = __float_as_uint(a);
  const uint32_t up = bits + 0x7FFFFu + ((bits >> 20) & 1u);
  const float normal = min_of(__uint_as_float(up & ~0xFFFFFu), 448.0f);
  const float subnormal = (a + 0x1p14f) - 0x1p14f;
  const float rounded = a < 0x1p-6f ? subnormal : normal;
  return x != x ? x
                : __uint_as_float(__float_as_uint(rounded) | (__float_as_uint(x) & 0x80000000u));
}

}  // namespace fathom::cuda
