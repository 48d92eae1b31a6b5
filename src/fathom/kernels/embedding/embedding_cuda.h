// embedding.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/embedding/embedding.h"

namespace fathom::cuda {

void embedding_fwd(Device& device, const float* table, const int32_t* ids, int64_t T, int64_t D,
                   int64_t copies, float* out);
void embedding_bwd(Device& device, const float* dout, const int32_t* ids, int64_t T, int64_t D,
                   int64_t copies, float* dtable);

}  // namespace fathom::cuda
