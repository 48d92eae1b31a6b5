// The two builds of vec_arrays_cpu.cc.
#pragma once

#include <cstdint>

namespace fathom {

#define FATHOM_DECLARE_VEC_ARRAYS(isa)                                                          \
  namespace isa {                                                                               \
  void exp_array(int64_t n, const float* x, float* y);                                          \
  void log_array(int64_t n, const float* x, float* y);                                          \
  void log1p_array(int64_t n, const float* x, float* y);                                        \
  void sigmoid_array(int64_t n, const float* x, float* y);                                      \
  void softplus_array(int64_t n, const float* x, float* y);                                     \
  void sin_cos_array(int64_t n, const double* x, double* sine, double* cosine);                 \
  void transpose16_block(const float* src, int64_t src_stride, float* dst, int64_t dst_stride); \
  }
FATHOM_DECLARE_VEC_ARRAYS(avx2)
FATHOM_DECLARE_VEC_ARRAYS(avx512)
#undef FATHOM_DECLARE_VEC_ARRAYS

}  // namespace fathom
