#include "fathom/numerics/vec_arrays_cpu.h"

#include "fathom/numerics/transpose.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

template <F16 (*kFunction)(F16)>
void map(int64_t n, const float* x, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, kFunction(load(x + i)));
  if (i < n) store_first(y + i, kFunction(load_first(x + i, n - i)), n - i);
}

}  // namespace

void exp_array(int64_t n, const float* x, float* y) { map<exp>(n, x, y); }
void log_array(int64_t n, const float* x, float* y) { map<log>(n, x, y); }
void log1p_array(int64_t n, const float* x, float* y) { map<log1p>(n, x, y); }
void sigmoid_array(int64_t n, const float* x, float* y) { map<sigmoid>(n, x, y); }
void softplus_array(int64_t n, const float* x, float* y) { map<softplus>(n, x, y); }

void sin_cos_array(int64_t n, const double* x, double* sine, double* cosine) {
  for (int64_t i = 0; i < n; ++i) sin_cos(x[i], sine + i, cosine + i);
}

void transpose16_block(const float* src, int64_t src_stride, float* dst, int64_t dst_stride) {
  transpose16(src, src_stride, dst, dst_stride);
}

}  // namespace FATHOM_ISA
}  // namespace fathom
