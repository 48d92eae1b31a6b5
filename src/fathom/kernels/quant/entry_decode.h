// Reading stored entries inside kernels. For _cpu.cc files.
#pragma once

#include "fathom/kernels/quant/entry_format.h"
#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

/// Where entry e of the pages lies.
inline const void* entry_at(const KeyPages& pages, int64_t e) {
  return static_cast<const uint8_t*>(pages.pages[e / pages.entries_per_page]) +
         e % pages.entries_per_page * pages.format.num_bytes;
}

inline void decode_bf16(const uint8_t* codes, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i, from_bits(shift_left<16>(load_halves(codes + 2 * i))));
  }
  if (i < n) {
    uint8_t rest[2 * kLanes] = {};
    __builtin_memcpy(rest, codes + 2 * i, static_cast<size_t>(2 * (n - i)));
    store_first(out + i, from_bits(shift_left<16>(load_halves(rest))), n - i);
  }
}

/// E4M3 codes to values: the exponent and mantissa bits as those of a float that is 2^120 too
/// small, subnormal codes included.
inline F16 e4m3_values(I16 codes) {
  const I16 sign = shift_left<24>(bit_and(codes, set1_int(0x80)));
  const I16 small = shift_left<20>(bit_and(codes, set1_int(0x7F)));
  const F16 magnitude = mul(from_bits(small), set1(0x1p120f));
  const F16 nan = from_bits(set1_int(0x7FC00000));
  // Code 0x7F reads as 480, which is no E4M3 value.
  const F16 value = select(eq(magnitude, set1(480.0f)), nan, magnitude);
  return from_bits(bit_or(sign, bits(value)));
}

inline float e8m0_value(uint8_t code) {
  const uint32_t value_bits = code == 0     ? 0x00400000u
                              : code == 255 ? 0x7FC00000u
                                            : static_cast<uint32_t>(code) << 23;
  float value;
  __builtin_memcpy(&value, &value_bits, sizeof value);
  return value;
}

inline void decode_fp8(const uint8_t* codes, int64_t n, float scale, float* out) {
  const F16 factor = set1(scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i, mul(e4m3_values(load_bytes(codes + i)), factor));
  }
  if (i < n) {
    uint8_t rest[kLanes] = {};
    __builtin_memcpy(rest, codes + i, static_cast<size_t>(n - i));
    store_first(out + i, mul(e4m3_values(load_bytes(rest)), factor), n - i);
  }
}

/// One entry that is not kF32 -> out [width].
inline void decode_entry(const EntryFormat& f, const void* entry, float* out) {
  const uint8_t* bytes = static_cast<const uint8_t*>(entry);
  if (f.kind == EntryKind::kBf16) return decode_bf16(bytes, f.width, out);
  const int64_t num_bf16 = f.width - f.fp8_channels;
  const uint8_t* scales = bytes + f.fp8_channels + 2 * num_bf16;
  for (int64_t i = 0; i < f.fp8_channels; i += f.fp8_block) {
    const int64_t n = f.fp8_channels - i < f.fp8_block ? f.fp8_channels - i : f.fp8_block;
    decode_fp8(bytes + i, n, e8m0_value(*scales++), out + i);
  }
  decode_bf16(bytes + f.fp8_channels, num_bf16, out + f.fp8_channels);
}

/// The floats of an entry: where they lie for kF32, else decoded into `room` [width].
inline const float* read_entry(const EntryFormat& f, const void* entry, float* room) {
  if (f.kind == EntryKind::kF32) return static_cast<const float*>(entry);
  decode_entry(f, entry, room);
  return room;
}

}  // namespace FATHOM_ISA
}  // namespace fathom
