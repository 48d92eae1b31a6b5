#include "fathom/kernels/quant/quant_cpu.h"

#include "fathom/kernels/quant/bf16_round.h"
#include "fathom/kernels/quant/entry_decode.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

inline F16 load_upto(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_first(p, n); }
inline void store_upto(float* p, F16 a, int64_t n) {
  if (n >= kLanes) {
    store(p, a);
  } else {
    store_first(p, a, n);
  }
}

inline F16 magnitude(F16 x) { return from_bits(bit_and(bits(x), set1_int(0x7FFFFFFF))); }

/// 2^ceil(log2(amax * fp32(1/448))) for a normal product; infinity for an infinite amax.
inline float power_scale(float amax) {
  const float x = amax * (1 / 448.0f);
  uint32_t b;
  __builtin_memcpy(&b, &x, sizeof b);
  b = (b & 0x7F800000u) + ((b & 0x007FFFFFu) != 0 ? 0x00800000u : 0);
  float scale;
  __builtin_memcpy(&scale, &b, sizeof scale);
  return scale;
}

/// x rounded to the E4M3 grid; beyond +-448 is +-448, NaN stays NaN.
inline F16 round_e4m3(F16 x) {
  const F16 a = magnitude(x);
  const I16 sign = bit_and(bits(x), set1_int(INT32_MIN));
  // Normal codes keep three mantissa bits; subnormal ones count steps of 2^-9, which is the last
  // place of 2^14.
  const I16 b = bits(a);
  const I16 odd = bit_and(shift_right<20>(b), set1_int(1));
  const I16 up = add(add(b, set1_int(0x7FFFF)), odd);
  const F16 normal = min(from_bits(bit_and(up, set1_int(~0xFFFFF))), set1(448.0f));
  const F16 subnormal = sub(add(a, set1(0x1p14f)), set1(0x1p14f));
  const F16 rounded = select(lt(a, set1(0x1p-6f)), subnormal, normal);
  return select(is_nan(x), x, from_bits(bit_or(bits(rounded), sign)));
}

inline void simulate_fp8_block(const float* x, int64_t n, float* out) {
  F16 largest = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    largest = max(magnitude(load_upto(x + i, n - i)), largest);  // a NaN does not count
  }
  const float amax = reduce_max(largest);
  const float scale = power_scale(amax > kFp8RowAmaxFloor ? amax : kFp8RowAmaxFloor);
  const F16 factor = set1(scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F16 q = round_e4m3(div(load_upto(x + i, n - i), factor));
    store_upto(out + i, mul(q, factor), n - i);
  }
}

}  // namespace

void round_bf16_elements(const float* x, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    store_upto(out + i, round_to_bf16(load_upto(x + i, end - i)), end - i);
  }
}

void simulate_fp8_row_range(const Fp8Rows& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t i = 0; i < p.n; i += p.block) {
      simulate_fp8_block(p.x + r * p.x_stride + i, p.n - i < p.block ? p.n - i : p.block,
                         p.out + r * p.out_stride + i);
    }
  }
}

void hadamard_row_range(float* x, int64_t n, float scale, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = x + r * n;
    for (int64_t h = 1; h < n; h *= 2) {
      for (int64_t i = 0; i < n; i += 2 * h) {
        for (int64_t j = i; j < i + h; ++j) {
          const float a = row[j], b = row[j + h];
          row[j] = a + b;
          row[j + h] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < n; i += kLanes) {
      const F16 y = mul(load_upto(row + i, n - i), set1(scale));
      store_upto(row + i, round_to_bf16(y), n - i);
    }
  }
}

void decode_entry_rows(const EntryFormat& f, const uint8_t* entries, int64_t count, float* rows) {
  for (int64_t r = 0; r < count; ++r) {
    decode_entry(f, entries + r * f.num_bytes, rows + r * f.width);
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
