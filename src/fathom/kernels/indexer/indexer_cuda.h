// indexer.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/indexer/indexer.h"

namespace fathom::cuda {

void indexer_topk(Device& device, const IndexerTopk& p);

}  // namespace fathom::cuda
