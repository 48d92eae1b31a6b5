// What follows from several options: names of directories, where a run lies, which precision.
#pragma once

#include <string>

#include "fathom/base/precision.h"
#include "fathom/config/command.h"
#include "fathom/config/options.h"

namespace fathom::config {

inline constexpr char kFlash[] = "DeepSeek-V4-Flash-FP8";
inline constexpr char kFlash4Layer[] = "DeepSeek-V4-Flash-FP8-4layer";
inline constexpr char kPro[] = "DeepSeek-V4-Pro-FP8";
inline constexpr char kTiny[] = "DeepSeek-V4-Tiny-FP8";  // built in, comes with the program

struct Derived {
  // Names of the directories in model_dir.
  std::string bf16_name;  // the BF16 cast
  std::string mxfp8_name;
  std::string torch_dist_name;  // sharded training weights
  std::string rollout_name;     // the checkpoint that rollout serves
  std::string model_org;

  std::string model_local_dir;  // model_dir unless given
  std::string source_path;      // FP8/FP4 checkpoint: hf_checkpoint, else {model_dir}/{model_name}
  std::string bf16_path;        // {model_dir}/{bf16_name}
  std::string torch_dist_path;  // {model_dir}/{torch_dist_name}
  std::string hf_checkpoint;    // of training: hf_checkpoint, else {model_local_dir}/{rollout_name}
  std::string ref_load;         // weights a fresh run starts from
  std::string run_path;         // {save_dir}/{run_id}; empty without a run id
  std::string checkpoint_path;  // {run_path}/checkpoints

  bool colocate = true;
  int64_t actor_num_nodes = 1;
  int64_t rollout_num_gpus = 1;
  Precision precision = Precision::kFp32;
  // What precision stands for; they differ in fast alone.
  fathom::Precision train_precision = fathom::Precision::kFp32;
  fathom::Precision rollout_precision = fathom::Precision::kFp32;
  RolloutLayout rollout_layout = RolloutLayout::kShared;
};

/// Pure: the same options give the same answer.
Derived derive(const Options& options);

/// Tokens that the engine guesses at a time: the speculative options, or 3 with --enable-mtp;
/// 0: none.
int64_t num_guessed_tokens(const Options& options);

/// The mode that --precision, --train-fp8 and --rollout-fp8 ask for: both on parity-fp8, both off
/// parity-bf16, different fast; of the two one that is not given counts as on. None given: fp32 on
/// the CPU.
/// @param[out] problem says what contradicts or is not enough, or stays as it is.
Precision resolve_precision(const Options& options, std::string* problem);

/// Whether nothing is computed: `plan`, and `train --dry-run`.
bool computes_on_paper(Command command, const Options& options);

/// UTC "%y%m%d-%H%M%S" and "-" and three random digits.
std::string make_run_id();

}  // namespace fathom::config
