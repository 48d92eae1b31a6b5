// prepare-single: an FP8 or FP4 model directory to a BF16 one, shard by shard.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/checkpoint/names.h"

namespace fathom {

struct PrepareSingleOptions {
  std::string input, output;  // directories
  NameDialect names = NameDialect::kSglang;
};

struct PrepareSingleResult {
  int64_t num_shards_written = 0;
  int64_t num_shards_kept = 0;  // finished by an earlier, interrupted run
  int64_t num_bytes = 0;        // of all tensors of the output
};

/// Decodes quantised tensors to BF16; every other tensor keeps its bytes. Shards keep their file
/// names. Each file appears only when it is whole, and model.safetensors.index.json, which says
/// that the cast is complete, comes last. An interrupted cast goes on where it stopped; a complete
/// one of the same input is left alone; one of another input is made again. Memory: a few pieces a
/// thread. Errors: UserError for an input that load_weights would refuse, an output directory that
/// holds other weights or that another process is writing, a full disk.
PrepareSingleResult prepare_single(const ExecContext& ctx, const PrepareSingleOptions& options);

}  // namespace fathom
