// rms_norm.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/rms_norm/rms_norm.h"

namespace fathom::cuda {

void rms_norm_fwd(Device& device, const RmsNormFwd& p);
void rms_norm_bwd(Device& device, const RmsNormBwd& p);

}  // namespace fathom::cuda
