// RMSNorm with and without weight, forward and backward, fp32.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

/// ρ = 1 / sqrt(Σ x² / N + eps) (sum in row_ops order, IEEE sqrt and division);
/// y = (x·ρ)·w, or x·ρ when w is null. x and y may be the same memory.
struct RmsNormFwd {
  const float* x;
  int64_t x_stride;  // floats between rows
  const float* w;    // [N] or null
  float* y;
  int64_t y_stride;
  int64_t num_rows, N;
  float eps;
};
void rms_norm_fwd(const ExecContext& ctx, const RmsNormFwd& p);

/// g = w⊙dy; dx (+)= ρ·g − x·ρ³·(Σ g·x)/N; dw[n] += Σ_rows dy·(x·ρ), one chain per element over
/// rows upwards that continues from dw. ρ is recomputed from x, with the bits of the forward.
struct RmsNormBwd {
  const float* x;
  int64_t x_stride;
  const float* w;  // [N] or null
  const float* dy;
  int64_t dy_stride;
  float* dx;  // may be dy's memory when not accumulating
  int64_t dx_stride;
  float* dw;  // [N] or null
  int64_t num_rows, N;
  float eps;
  bool accumulate = false;  // add to dx
};
void rms_norm_bwd(const ExecContext& ctx, const RmsNormBwd& p);

}  // namespace fathom
