// adam.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/adam/adam.h"

namespace fathom::cuda {

void adam_update(Device& device, const AdamStep& s, int64_t n, const float* grad, float* w,
                 float* m, float* v);
std::vector<double> squared_norms(Device& device, const std::vector<NormTensor>& tensors);

}  // namespace fathom::cuda
