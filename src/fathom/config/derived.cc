#include "fathom/config/derived.h"

#include <cstdio>
#include <ctime>
#include <random>

#include "fathom/base/file.h"

namespace fathom::config {

namespace {

/// The mode of one side, given its switch.
fathom::Precision model_precision(Precision precision, const std::optional<bool>& fp8) {
  switch (precision) {
    case Precision::kFp32:
      return fathom::Precision::kFp32;
    case Precision::kParityBf16:
      return fathom::Precision::kParityBf16;
    case Precision::kParityFp8:
      return fathom::Precision::kParityFp8;
    case Precision::kFast:
      return fp8.value_or(true) ? fathom::Precision::kParityFp8 : fathom::Precision::kParityBf16;
  }
  return fathom::Precision::kFp32;
}

}  // namespace

Derived derive(const Options& options) {
  const LaunchOptions& o = options.launch;
  Derived d;
  d.bf16_name = o.model_name == kPro ? "DeepSeek-V4-Pro-BF16" : o.model_name + "-bf16";
  d.mxfp8_name = o.model_name + "-MXFP8";
  d.torch_dist_name = o.model_name + "_torch_dist";
  d.rollout_name = o.rollout_mxfp8                ? d.mxfp8_name
                   : o.rollout_fp8.value_or(true) ? o.model_name
                                                  : d.bf16_name;
  d.model_org = o.model_org.value_or(o.model_name == kFlash4Layer ? "Pinaster" : "sgl-project");

  d.model_local_dir = o.model_local_dir.value_or(o.model_dir);
  d.source_path = o.hf_checkpoint.value_or(join_path(o.model_dir, o.model_name));
  d.bf16_path = join_path(o.model_dir, d.bf16_name);
  d.torch_dist_path = join_path(o.model_dir, d.torch_dist_name);
  d.hf_checkpoint = o.hf_checkpoint.value_or(join_path(d.model_local_dir, d.rollout_name));
  d.ref_load =
      options.checkpoint.ref_load.value_or(join_path(d.model_local_dir, d.torch_dist_name));
  if (o.run_id) {
    d.run_path = join_path(o.save_dir, *o.run_id);
    d.checkpoint_path = join_path(d.run_path, "checkpoints");
  }

  d.colocate = o.rollout_num_nodes == 0;
  d.actor_num_nodes = o.num_nodes - o.rollout_num_nodes;
  d.rollout_num_gpus = (d.colocate ? o.num_nodes : o.rollout_num_nodes) * o.num_gpus_per_node;
  std::string problem;
  d.precision = resolve_precision(options, &problem);
  d.train_precision = model_precision(d.precision, o.train_fp8);
  d.rollout_precision = model_precision(d.precision, o.rollout_fp8);
  d.rollout_layout = options.engine.rollout_layout.value_or(
      options.parallel.pipeline_model_parallel_size > 1 ? RolloutLayout::kEngine
                                                        : RolloutLayout::kShared);
  return d;
}

namespace {

const char* precision_name(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return "fp32";
    case Precision::kParityBf16:
      return "parity-bf16";
    case Precision::kParityFp8:
      return "parity-fp8";
    case Precision::kFast:
      return "fast";
  }
  return "";
}

}  // namespace

int64_t num_guessed_tokens(const Options& options) {
  constexpr int64_t kUsualSteps = 3;
  const EngineOptions& o = options.engine;
  if (!options.launch.enable_mtp && !o.speculative_algorithm) return 0;
  return o.speculative_num_steps.value_or(kUsualSteps);
}

Precision resolve_precision(const Options& options, std::string* problem) {
  const LaunchOptions& o = options.launch;
  const std::optional<Precision>& given = options.runtime.precision;
  if (!o.train_fp8 && !o.rollout_fp8) {
    if (given == Precision::kFast)
      *problem =
          "--precision fast is trainer and rollout in different number formats: add --train-fp8 "
          "and --no-rollout-fp8, or the other way round. Nothing is faster on the CPU than fp32, "
          "in which they agree";
    return given.value_or(Precision::kFp32);
  }
  const bool train = o.train_fp8.value_or(true), rollout = o.rollout_fp8.value_or(true);
  const Precision asked = train != rollout ? Precision::kFast
                          : train          ? Precision::kParityFp8
                                           : Precision::kParityBf16;
  if (given && *given != asked)
    *problem = std::string("--precision ") + precision_name(*given) +
               " contradicts --train-fp8 and --rollout-fp8, which ask for " +
               precision_name(asked) + "; give one of them";
  return given.value_or(asked);
}

bool computes_on_paper(Command command, const Options& options) {
  return command == Command::kPlan || (contains(kTraining, command) && options.tool.dry_run);
}

std::string make_run_id() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  const size_t length = std::strftime(text, sizeof text, "%y%m%d-%H%M%S", &utc);
  std::snprintf(text + length, sizeof text - length, "-%03u", std::random_device()() % 1000);
  return text;
}

}  // namespace fathom::config
