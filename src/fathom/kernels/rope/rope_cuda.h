// rope.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/rope/rope.h"

namespace fathom::cuda {

void rope_table(Device& device, const int64_t* positions, int64_t num_positions,
                const float* frequencies, int64_t num_frequencies, float* cos, float* sin);
void rope_apply(Device& device, const RopeApply& p);

}  // namespace fathom::cuda
