// sparse_attention.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/sparse_attention/sparse_attention.h"

namespace fathom::cuda {

void sparse_attention_fwd(Device& device, const SparseAttentionFwd& p);
void sparse_attention_bwd(Device& device, const SparseAttentionBwd& b);

}  // namespace fathom::cuda
