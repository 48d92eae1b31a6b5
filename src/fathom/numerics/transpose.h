// Transposes a block of 16 by 16 floats.
#pragma once

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

/// dst[i·dst_stride + j] = src[j·src_stride + i] for i, j < 16. The two must not overlap.
inline void transpose16(const float* src, int64_t src_stride, float* dst, int64_t dst_stride) {
  // Quarters of a source row are gathered so that row r of `a` holds columns of one quarter of the
  // result: after the loads only 4 by 4 transposes inside the 128-bit lanes remain.
  for (int q = 0; q < 4; ++q) {
    __m512 a[4];
    for (int r = 0; r < 4; ++r) {
      const float* p = src + r * src_stride + 4 * q;
      a[r] = _mm512_castps128_ps512(_mm_loadu_ps(p));
      a[r] = _mm512_insertf32x4(a[r], _mm_loadu_ps(p + 4 * src_stride), 1);
      a[r] = _mm512_insertf32x4(a[r], _mm_loadu_ps(p + 8 * src_stride), 2);
      a[r] = _mm512_insertf32x4(a[r], _mm_loadu_ps(p + 12 * src_stride), 3);
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
    float* out = dst + 4 * q * dst_stride;
    _mm512_storeu_pd(out, _mm512_unpacklo_pd(low01, low23));
    _mm512_storeu_pd(out + dst_stride, _mm512_unpackhi_pd(low01, low23));
    _mm512_storeu_pd(out + 2 * dst_stride, _mm512_unpacklo_pd(high01, high23));
    _mm512_storeu_pd(out + 3 * dst_stride, _mm512_unpackhi_pd(high01, high23));
  }
}

#else

inline void transpose16(const float* src, int64_t src_stride, float* dst, int64_t dst_stride) {
  for (int half = 0; half < 2; ++half) {
    for (int q = 0; q < 4; ++q) {
      __m256 a[4];
      for (int r = 0; r < 4; ++r) {
        const float* p = src + (8 * half + r) * src_stride + 4 * q;
        a[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                    _mm_loadu_ps(p + 4 * src_stride), 1);
      }
      const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(a[0], a[1]));
      const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(a[0], a[1]));
      const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(a[2], a[3]));
      const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(a[2], a[3]));
      float* out = dst + 4 * q * dst_stride + 8 * half;
      _mm256_storeu_ps(out, _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23)));
      _mm256_storeu_ps(out + dst_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23)));
      _mm256_storeu_ps(out + 2 * dst_stride, _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23)));
      _mm256_storeu_ps(out + 3 * dst_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23)));
    }
  }
}

#endif

}  // namespace FATHOM_ISA
}  // namespace fathom
