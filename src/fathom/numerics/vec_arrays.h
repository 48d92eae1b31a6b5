// The functions of vec_math.h on arrays, for code outside kernels (the sampler, tests).
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

/// y[i] = f(x[i]) for i < n, with the bits of one lane whatever n is. y may be x.
void exp_array(CpuIsa isa, int64_t n, const float* x, float* y);
void log_array(CpuIsa isa, int64_t n, const float* x, float* y);
void log1p_array(CpuIsa isa, int64_t n, const float* x, float* y);  // x >= 0
void sigmoid_array(CpuIsa isa, int64_t n, const float* x, float* y);
void softplus_array(CpuIsa isa, int64_t n, const float* x, float* y);
/// In fp64, absolute error below 1e-15 for |x| < 2^21.
void sin_cos_array(CpuIsa isa, int64_t n, const double* x, double* sine, double* cosine);

}  // namespace fathom
