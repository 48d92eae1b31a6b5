// Dot products of one vector with many keys, each with the bits of row_ops.h dot(). For _cpu.cc
// files.
#pragma once

#include "fathom/numerics/row_ops.h"

namespace fathom {
namespace FATHOM_ISA {

/// The first two levels of reduce_add: lane i + lane i+8, then + lane i+4.
inline __m128 fold_to_4(F16 a) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#else
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
#endif
  return _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
}

/// reduce_add of four vectors at once: the same additions, side by side.
inline __m128 reduce_add4(F16 a, F16 b, F16 c, F16 d) {
  const __m128 a4 = fold_to_4(a), b4 = fold_to_4(b), c4 = fold_to_4(c), d4 = fold_to_4(d);
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(a4, b4), _mm_movehl_ps(b4, a4));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(c4, d4), _mm_movehl_ps(d4, c4));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD));
}

/// out[j] = dot(x, keys[j], n) for j < count.
inline void dots(const float* x, const float* const* keys, int64_t count, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float *k0 = keys[j], *k1 = keys[j + 1], *k2 = keys[j + 2], *k3 = keys[j + 3];
    F16 s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const F16 v = load(x + i);
      s0 = fma(v, load(k0 + i), s0);
      s1 = fma(v, load(k1 + i), s1);
      s2 = fma(v, load(k2 + i), s2);
      s3 = fma(v, load(k3 + i), s3);
    }
    if (i < n) {
      const int64_t rest = n - i;
      const F16 v = load_first(x + i, rest);
      s0 = fma(v, load_first(k0 + i, rest), s0);
      s1 = fma(v, load_first(k1 + i, rest), s1);
      s2 = fma(v, load_first(k2 + i, rest), s2);
      s3 = fma(v, load_first(k3 + i, rest), s3);
    }
    _mm_storeu_ps(out + j, reduce_add4(s0, s1, s2, s3));
  }
  for (; j < count; ++j) out[j] = dot(x, keys[j], n);
}

}  // namespace FATHOM_ISA
}  // namespace fathom
