// router.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/router/router.h"

namespace fathom::cuda {

void router_fwd(Device& device, const RouterFwd& p);
void router_bwd(Device& device, const RouterBwd& p);
void sort_by_expert(Device& device, int64_t num_slots, int64_t E, const int32_t* topk_idx,
                    int32_t* slot_row, int64_t* row_begin);

}  // namespace fathom::cuda
