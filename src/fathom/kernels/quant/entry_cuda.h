// entry_codec.h and window_ring.h on a CUDA device, with the bits of the CPU.
#pragma once

#include "fathom/kernels/quant/entry_codec.h"
#include "fathom/kernels/quant/window_ring.h"

namespace fathom::cuda {

void encode_entry_runs(Device& device, const EntryFormat& format, const float* rows,
                       const std::vector<EntryRun>& runs);
void window_gather(Device& device, const EntryFormat& format, int64_t W,
                   const std::vector<WindowSegment>& segments, const float* fresh, float* rows);
void window_keep(Device& device, const EntryFormat& format, int64_t W,
                 const std::vector<WindowKeep>& rings, const float* fresh);

}  // namespace fathom::cuda
