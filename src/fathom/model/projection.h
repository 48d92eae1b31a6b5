// Products of the packed rows with a parameter: thin, typed calls of kernels/linear.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/model/parameter.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// x [.., K] as the product with w takes it: quantised in fresh memory for FP8 blocks, else x
/// itself (which the modes have rounded where it was made).
Tensor operand(const ExecContext& ctx, const Parameter& w, const Tensor& x);

/// Where the sums of w's products are cut (kernels/linear: k_block); 0: nowhere.
int64_t sum_block(const Parameter& w);

/// Parts of a row-parallel product with w that this rank has: multiples of 128 for FP8 blocks, else
/// of 16.
int row_parallel_parts(const Parameter& w);

/// y [T, N] = operand(x) [T, K] · Wᵀ, not rounded.
Tensor project(const ExecContext& ctx, const Parameter& w, const Tensor& x, int num_parts = 1);

/// dx [T, K] (+)= dy [T, N] · W, and dW += dyᵀ operand(x) where the parameter has a gradient
/// buffer.
void project_backward(const ExecContext& ctx, Parameter& w, const Tensor& x, const Tensor& dy,
                      Tensor* dx, bool accumulate);

/// RMSNorm of rows [T, N] with the parameter as weight (null: none).
Tensor normed(const ExecContext& ctx, const Tensor& x, const Parameter* w, double eps);

/// dx of rms norm into a fresh tensor; dw added to the parameter's gradient.
Tensor normed_backward(const ExecContext& ctx, const Tensor& x, Parameter* w, double eps,
                       const Tensor& dy);

}  // namespace fathom
