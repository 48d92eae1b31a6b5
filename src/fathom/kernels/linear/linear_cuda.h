// linear.h on a CUDA device, with the bits of the CPU. Weights are row-major.
#pragma once

#include "fathom/kernels/linear/linear.h"

namespace fathom::cuda {

void linear_fwd(Device& device, const LinearFwd& p);
void linear_bwd_input(Device& device, const LinearBwdInput& p);
void linear_bwd_weight(Device& device, const LinearBwdWeight& p);
void grouped_linear_fwd(Device& device, const GroupedLinear& g, const float* x,
                        const float* const* w, float* y, int num_parts, int64_t k_block);
void grouped_linear_bwd_input(Device& device, const GroupedLinear& g, const float* dy,
                              const float* const* w, float* dx, bool accumulate);
void grouped_linear_bwd_weight(Device& device, const GroupedLinear& g, const float* x,
                               const float* dy, float* const* dw);

}  // namespace fathom::cuda
