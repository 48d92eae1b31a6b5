// A Hugging Face checkpoint to a torch_dist directory, straight from FP8 or FP4 or from a BF16
// cast, in one pass over the source and in bounded memory.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/spmd_group.h"
#include "fathom/checkpoint/spmd_plan.h"

namespace fathom {

struct PrepareSpmdOptions {
  SpmdPlanOptions plan;
  ProcessPlace place;  // several processes share the work by the directory they write to
  double patience_seconds = 120;
};

struct PrepareSpmdResult {
  bool was_there = false;  // the directory was finished by an earlier run; nothing was done
  int64_t num_files = 0, num_files_kept = 0;  // of the checkpoint; finished by an earlier run
  int64_t num_tensors = 0;                    // official tensors
  int64_t num_chunks = 0;                     // boxes
  int64_t num_bytes = 0;                      // of all .distcp files
  int64_t num_rounded = 0;    // tensors whose F32 or F16 values were rounded to BF16
  int64_t num_kept_fp32 = 0;  // tensors stored as F32 (sinks, ape, hc_*, gate.bias)
  int64_t num_bytes_read = 0, num_bytes_written = 0;  // by this process, in this run
};

/// Writes `out_dir`/release and, last, the tracker file with the word "release". Keys, boxes and
/// element types are those of megatron_names.h, files and boxes those of the layout (spmd_plan.h);
/// the vocabulary is not padded. Killed at any moment, it leaves nothing that is taken for whole,
/// and goes on with the files that are missing. Memory: a few pieces a thread, whatever the model.
/// Errors: UserError for a source with NaN or infinite values, a directory that holds training
/// checkpoints, another conversion at work there, too little space; ConfigError for a layout that
/// the model does not fit.
PrepareSpmdResult prepare_spmd(const ExecContext& ctx, const ModelTensors& source,
                               const std::string& out_dir, const PrepareSpmdOptions& options = {});

/// A table of the bytes and files that each rank of the layout gets, for people.
std::string describe_spmd_plan(const SpmdPlan& plan, const ParallelLayout& layout);

}  // namespace fathom
