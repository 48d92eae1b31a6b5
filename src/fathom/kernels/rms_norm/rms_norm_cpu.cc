#include "fathom/kernels/rms_norm/rms_norm_cpu.h"

#include "fathom/numerics/row_ops.h"

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

inline float inverse_rms(const float* x, int64_t N, float eps) {
  return 1.0f / __builtin_sqrtf(dot(x, x, N) / static_cast<float>(N) + eps);
}

/// g = w*dy, or dy without a weight, of elements i .. i+15 of a row.
inline F16 weighted(const float* w, const float* dy, int64_t i, int64_t n) {
  const F16 d = load_upto(dy + i, n);
  return w != nullptr ? mul(load_upto(w + i, n), d) : d;
}

}  // namespace

void rms_norm_fwd_rows(const RmsNormFwd& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* x = p.x + r * p.x_stride;
    float* y = p.y + r * p.y_stride;
    const F16 rho = set1(inverse_rms(x, p.N, p.eps));
    for (int64_t i = 0; i < p.N; i += kLanes) {
      const int64_t n = p.N - i;
      F16 normed = mul(load_upto(x + i, n), rho);
      if (p.w != nullptr) normed = mul(normed, load_upto(p.w + i, n));
      store_upto(y + i, normed, n);
    }
  }
}

void rms_norm_rho_rows(const RmsNormBwd& p, float* rho, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) rho[r] = inverse_rms(p.x + r * p.x_stride, p.N, p.eps);
}

void rms_norm_dw_columns(const RmsNormBwd& p, const float* rho, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t n = end - i;
    F16 acc = load_upto(p.dw + i, n);
    for (int64_t r = 0; r < p.num_rows; ++r) {
      const F16 normed = mul(load_upto(p.x + r * p.x_stride + i, n), set1(rho[r]));
      acc = fma(load_upto(p.dy + r * p.dy_stride + i, n), normed, acc);
    }
    store_upto(p.dw + i, acc, n);
  }
}

void rms_norm_dx_rows(const RmsNormBwd& p, const float* rho, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* x = p.x + r * p.x_stride;
    const float* dy = p.dy + r * p.dy_stride;
    float* dx = p.dx + r * p.dx_stride;
    F16 sum = zero();
    for (int64_t i = 0; i < p.N; i += kLanes) {
      const int64_t n = p.N - i;
      sum = fma(weighted(p.w, dy, i, n), load_upto(x + i, n), sum);
    }
    const F16 scale = set1(rho[r]);
    const F16 pull = set1(rho[r] * rho[r] * rho[r] * reduce_add(sum) / static_cast<float>(p.N));
    for (int64_t i = 0; i < p.N; i += kLanes) {
      const int64_t n = p.N - i;
      F16 d = fnma(load_upto(x + i, n), pull, mul(scale, weighted(p.w, dy, i, n)));
      if (p.accumulate) d = add(load_upto(dx + i, n), d);
      store_upto(dx + i, d, n);
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
