// quant.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/quant/quant.h"

namespace fathom::cuda {

void round_bf16(Device& device, const float* x, int64_t n, float* out);
void simulate_fp8_rows(Device& device, const Fp8Rows& p);
void hadamard_rows_bf16(Device& device, int64_t num_rows, int64_t n, float scale, float* x);
void simulate_fp8_blocks(Device& device, const float* w, int64_t rows, int64_t cols, float* out);

}  // namespace fathom::cuda
