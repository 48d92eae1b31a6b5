#include "fathom/rollout/sampler_cpu.h"

#include "fathom/numerics/simd.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

// ---- Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3") ----

/// Four blocks side by side: one 64-bit lane each, the word in its low half.
struct PhiloxState {
  __m256i c0, c1, c2, c3;
};

inline __m256i set_low(uint32_t word) { return _mm256_set1_epi64x(static_cast<int64_t>(word)); }

/// The high halves of the lanes hold garbage afterwards: neither mul_epu32 nor the caller reads
/// them.
inline void philox_rounds(PhiloxState& s, uint32_t key0, uint32_t key1) {
  const __m256i m0 = set_low(0xD2511F53u), m1 = set_low(0xCD9E8D57u);
  for (int round = 0; round < 10; ++round) {
    const __m256i p0 = _mm256_mul_epu32(s.c0, m0);
    const __m256i p1 = _mm256_mul_epu32(s.c2, m1);
    s.c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), s.c1), set_low(key0));
    s.c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), s.c3), set_low(key1));
    s.c1 = p1;
    s.c3 = p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

/// words[w][lane]: word w of the block whose counter is {block of the lane, 0, position}.
struct PhiloxWords {
  alignas(32) uint64_t words[4][4];
  int32_t word(int w, int lane) const {
    return static_cast<int32_t>(static_cast<uint32_t>(words[w][lane]));
  }
};

inline PhiloxWords philox_blocks(const NoiseKey& key, __m256i blocks) {
  const uint64_t position = static_cast<uint64_t>(key.position);
  PhiloxState s;
  s.c0 = blocks;
  s.c1 = _mm256_setzero_si256();
  s.c2 = set_low(static_cast<uint32_t>(position));
  s.c3 = set_low(static_cast<uint32_t>(position >> 32));
  philox_rounds(s, static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
  PhiloxWords out;
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.words[0]), s.c0);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.words[1]), s.c1);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.words[2]), s.c2);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.words[3]), s.c3);
  return out;
}

// ---- Gumbel noise ----

// E >= 2^-33, so no noise reaches 33 log 2 = 22.874.
constexpr float kNoiseBound = 23.0f;

inline I16 load_words(const int32_t* words) {
  return bits(load(reinterpret_cast<const float*>(words)));
}

/// -log(E), E = -log(u), u = (r + 1/2) / 2^32.
inline F16 noise_of_words(I16 r) {
  const F16 as_float = to_float(r);
  const M16 upper_half = lt(as_float, zero());  // r >= 2^31
  // The distance t of u from its nearer end, in (0, 1/2]: r there, or ~r = -1 - r.
  const F16 steps = select(upper_half, to_float(sub(set1_int(-1), r)), as_float);
  const F16 t = fma(steps, set1(0x1p-32f), set1(0x1p-33f));
  // Near u = 1, E = -log(1 - t) = t + t^2/2 + t^3/3 + t^4/4 to fp32 precision for t < 2^-8.
  F16 series = fma(t, set1(0.25f), set1(1.0f / 3.0f));
  series = fma(t, series, set1(0.5f));
  series = fma(t, series, set1(1.0f));
  series = mul(t, series);
  const F16 u = select(upper_half, sub(set1(1.0f), t), t);
  const F16 from_log = sub(zero(), log(u));
  const M16 near_one = lt(select(upper_half, t, set1(1.0f)), set1(0x1p-8f));
  return sub(zero(), log(select(near_one, series, from_log)));
}

/// Noise of the 16 columns from 4 * first_block on.
inline F16 noise_of_blocks(const NoiseKey& key, int64_t first_block) {
  const __m256i blocks =
      _mm256_add_epi64(_mm256_set1_epi64x(first_block), _mm256_setr_epi64x(0, 1, 2, 3));
  const PhiloxWords words = philox_blocks(key, blocks);
  alignas(64) int32_t r[kLanes];
  for (int lane = 0; lane < 4; ++lane) {
    for (int w = 0; w < 4; ++w) r[4 * lane + w] = words.word(w, lane);
  }
  return noise_of_words(load_words(r));
}

/// Noise of 16 columns of any order.
inline F16 noise_of_columns(const NoiseKey& key, const int32_t* columns) {
  alignas(64) int32_t r[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    const __m256i blocks = _mm256_setr_epi64x(columns[i] / 4, columns[i + 1] / 4,
                                              columns[i + 2] / 4, columns[i + 3] / 4);
    const PhiloxWords words = philox_blocks(key, blocks);
    for (int lane = 0; lane < 4; ++lane) {
      r[i + lane] = words.word(columns[i + lane] % 4, lane);
    }
  }
  return noise_of_words(load_words(r));
}

struct Best {
  float value;
  int32_t column;
  void offer(float v, int32_t c) {
    if (v > value || (v == value && c < column)) value = v, column = c;
  }
};

}  // namespace

RowScan scan_row(const float* z, int64_t n) {
  // Per lane the first largest value; column numbers as floats would stop at 2^24, so group
  // numbers.
  F16 best = set1(z[0]), best_group = zero(), not_finite = zero();
  int64_t i = 0;
  float group = 0;
  for (; i + kLanes <= n; i += kLanes, group += 1) {
    const F16 x = load(z + i);
    not_finite = fma(x, zero(), not_finite);  // 0 * inf and 0 * NaN are NaN
    const M16 larger = lt(best, x);
    best = select(larger, x, best);
    best_group = select(larger, set1(group), best_group);
  }
  float check = reduce_add(not_finite);
  alignas(64) float values[kLanes], groups[kLanes];
  store(values, best);
  store(groups, best_group);
  Best winner{z[0], 0};
  for (int lane = 0; lane < kLanes; ++lane) {
    // A lane that never won still holds z[0], whose column is 0.
    const bool untouched = values[lane] == z[0];
    const int32_t column = static_cast<int32_t>(groups[lane]) * kLanes + lane;
    winner.offer(values[lane], untouched ? 0 : column);
  }
  for (; i < n; ++i) {
    check += z[i] * 0.0f;
    winner.offer(z[i], static_cast<int32_t>(i));
  }
  return {winner.column, check == check};
}

void divide_row(const float* z, float t, int64_t n, float* out) {
  const F16 divisor = set1(t);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, div(load(z + i), divisor));
  for (; i < n; ++i) out[i] = z[i] / t;
}

void probability_row(const float* z, float lse, int64_t n, float* out) {
  const F16 shift = set1(lse);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    store_first(out + i, exp(sub(load_first(z + i, count), shift)), count);
  }
}

int32_t noisy_argmax(const float* z, int64_t n, const NoiseKey& key, int32_t likely) {
  alignas(64) float values[kLanes];
  store(values, noise_of_blocks(key, likely / kLanes * (kLanes / 4)));
  Best best{z[likely] + values[likely % kLanes], likely};
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    const F16 x = load_first(z + i, count);
    float largest = z[i];
    if (count == kLanes) {
      largest = reduce_max(x);
    } else {
      for (int64_t j = 1; j < count; ++j) largest = z[i + j] > largest ? z[i + j] : largest;
    }
    // Rounding is monotone: where the bound falls short, every sum of the group does.
    if (largest + kNoiseBound < best.value) continue;
    store(values, add(x, noise_of_blocks(key, i / 4)));
    for (int64_t j = 0; j < count; ++j) best.offer(values[j], static_cast<int32_t>(i + j));
  }
  return best.column;
}

int32_t noisy_argmax_of(const float* z, const int32_t* columns, int64_t count,
                        const NoiseKey& key) {
  alignas(64) float noise[kLanes];
  Best best{0, -1};
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t m = count - i < kLanes ? count - i : kLanes;
    int32_t group[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) group[j] = columns[i + (j < m ? j : 0)];
    store(noise, noise_of_columns(key, group));
    for (int64_t j = 0; j < m; ++j) {
      const float value = z[group[j]] + noise[j];
      if (best.column < 0) best = {value, group[j]};
      best.offer(value, group[j]);
    }
  }
  return best.column;
}

void noise_row(const NoiseKey& key, int64_t first_column, int64_t count, float* out) {
  alignas(64) float noise[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    int32_t group[kLanes];
    const int64_t m = count - i < kLanes ? count - i : kLanes;
    for (int64_t j = 0; j < kLanes; ++j) {
      group[j] = static_cast<int32_t>(first_column + i + (j < m ? j : 0));
    }
    store(noise, noise_of_columns(key, group));
    for (int64_t j = 0; j < m; ++j) out[i + j] = noise[j];
  }
}

void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  PhiloxState s{set_low(counter[0]), set_low(counter[1]), set_low(counter[2]), set_low(counter[3])};
  philox_rounds(s, key[0], key[1]);
  const __m256i lanes[4] = {s.c0, s.c1, s.c2, s.c3};
  for (int w = 0; w < 4; ++w) {
    out[w] = static_cast<uint32_t>(_mm256_cvtsi256_si32(lanes[w]));
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
