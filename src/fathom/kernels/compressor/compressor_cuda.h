// compressor.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/compressor/compressor.h"

namespace fathom::cuda {

void compressor_fwd_runs(Device& device, const CompressorFwd& p,
                         const std::vector<CompressorRun>& runs);
void compressor_bwd(Device& device, const CompressorBwd& p);

}  // namespace fathom::cuda
