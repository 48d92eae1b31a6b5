// log_prob.h on a CUDA device, with the bits of the CPU. The head is row-major.
#pragma once

#include "fathom/kernels/log_prob/log_prob.h"

namespace fathom::cuda {

void log_prob_fwd(Device& device, const LogProbFwd& p);
void log_prob_bwd(Device& device, const LogProbBwd& p);

}  // namespace fathom::cuda
