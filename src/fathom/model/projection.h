// Products of the packed rows with a parameter: thin, typed calls of kernels/linear.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/model/parameter.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// y [T, N] = x [T, K] · Wᵀ.
Tensor project(const ExecContext& ctx, const Parameter& w, const Tensor& x, int num_parts = 1);

/// dx [T, K] (+)= dy [T, N] · W, and dW += dyᵀ x where the parameter has a gradient buffer.
void project_backward(const ExecContext& ctx, Parameter& w, const Tensor& x, const Tensor& dy,
                      Tensor* dx, bool accumulate);

/// RMSNorm of rows [T, N] with the parameter as weight (null: none).
Tensor normed(const ExecContext& ctx, const Tensor& x, const Parameter* w, double eps);

/// dx of rms norm into a fresh tensor; dw added to the parameter's gradient.
Tensor normed_backward(const ExecContext& ctx, const Tensor& x, Parameter* w, double eps,
                       const Tensor& dy);

}  // namespace fathom
