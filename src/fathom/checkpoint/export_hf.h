// Weights to a Hugging Face model directory, row by row: memory does not grow with the model.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/checkpoint/export_source.h"
#include "fathom/checkpoint/names.h"
#include "fathom/model/weights.h"

namespace fathom {

enum class ExportFormat {
  kBf16,  // BF16; F32 for sinks, ape, hc_* and gate.bias; I64 for tid2eid
  kFp8,   // as above, but experts (routed and shared), wq_a, wq_b, wkv, wo_b and indexer.wq_b as
          // FP8 in blocks of 128 x 128
};
enum class ExportScales {
  kE8m0,  // powers of two
  kF32,   // amax / 448
};

struct ExportOptions {
  std::string output;  // directory
  ExportFormat format = ExportFormat::kBf16;
  ExportScales scales = ExportScales::kE8m0;
  NameDialect names = NameDialect::kOfficial;  // kTransformers: BF16 only
  std::string companions;  // directory whose tokenizer and generation files go along; may be empty
  int64_t max_shard_bytes = 5'000'000'000;
  int64_t piece_bytes = 4 << 20;  // of fp32 values made at a time by one thread
};

struct ExportResult {
  int64_t num_shards = 0;
  int64_t num_tensors = 0;
  int64_t num_bytes = 0;
  int64_t num_copied = 0;  // tensors that came from the original byte for byte
};

/// Rounds each master once, to nearest even. config.json is written in the form that both the hub's
/// readers (compress_ratios) and transformers (layer_types) understand. The last file that appears
/// is the index, or model.safetensors where one file is enough: without it the directory is not
/// complete, and a second export starts over.
/// Errors: UserError for a weight that is NaN, infinite or too large for BF16, an output directory
/// that holds a complete model, too little space; ConfigError for FP8 under transformers' names.
ExportResult export_hf(const ExecContext& ctx, const ExportSource& weights,
                       const ExportOptions& options);
ExportResult export_hf(const ExecContext& ctx, const Weights& weights,
                       const ExportOptions& options);

/// The same against the checkpoint that the weights come from: files, names, config.json and
/// companions are the original's. Every tensor of it whose values are still those of the weights
/// (after the rounding that the original's form has) is copied byte for byte, in its FP4, FP8 or
/// other form; so is what the weights do not hold, such as MTP modules. The others are written in
/// `options.format`. options.names and companions are not used.
/// Errors: as above, and UserError when the weights are of another model.
ExportResult export_hf_over(const ExecContext& ctx, const ExportSource& weights,
                            const std::string& original, const ExportOptions& options);

/// What export_hf asks of its output directory, for callers that want to know before long work.
/// Errors: UserError when the directory holds a complete model.
void check_export_output(const std::string& output);

/// Whether `export_hf` writes this official name in FP8.
bool is_exported_as_fp8(const std::string& official);

}  // namespace fathom
