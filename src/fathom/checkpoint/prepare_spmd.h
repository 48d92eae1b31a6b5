// A Hugging Face checkpoint to a torch_dist directory, straight from FP8 or FP4 or from a BF16
// cast.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/checkpoint/model_tensors.h"

namespace fathom {

struct PrepareSpmdOptions {
  int64_t piece_bytes = 32 << 20;  // of fp32 values in memory at a time
  /// From this size on, tensors that Megatron's tensor parallelism cuts are stored in 8 boxes along
  /// that dimension, so that a loader of up to 8 ranks reads what it needs and no more.
  int64_t split_from_bytes = 4 << 20;
};

struct PrepareSpmdResult {
  bool was_there = false;     // the directory was finished by an earlier run; nothing was done
  int64_t num_tensors = 0;    // official tensors read
  int64_t num_chunks = 0;     // boxes written
  int64_t num_bytes = 0;      // of all .distcp files
  int64_t num_rounded = 0;    // tensors whose F32 or F16 values were rounded to BF16
  int64_t num_kept_fp32 = 0;  // tensors stored as F32 (sinks, ape, hc_*, gate.bias)
};

/// Writes `out_dir`/release and, last, the tracker file with the word "release". Keys, boxes and
/// element types are those of megatron_names.h; the vocabulary is not padded. Tensors are read in
/// the order of the source files and pass through in pieces, so memory does not grow with the
/// model. Killed at any moment, it leaves nothing that is taken for whole, and starts again.
/// Errors: UserError for a source with NaN or infinite values, a directory that holds training
/// checkpoints, a second process at work there, too little space.
PrepareSpmdResult prepare_spmd(const ExecContext& ctx, const ModelTensors& source,
                               const std::string& out_dir, const PrepareSpmdOptions& options = {});

}  // namespace fathom
