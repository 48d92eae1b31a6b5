// swiglu.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/swiglu/swiglu.h"

namespace fathom::cuda {

void swiglu_fwd(Device& device, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, float* a);
void swiglu_bwd(Device& device, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, const float* da, float* dg, float* du);
void moe_dispatch(Device& device, int64_t T, int64_t K, int64_t D, const float* x,
                  const int32_t* slot_row, float* rows);
void moe_combine_fwd(Device& device, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* shared,
                     float* out);
void moe_combine_bwd(Device& device, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* dout, float* drows,
                     float* dweights);

}  // namespace fathom::cuda
