#include "fathom/base/file.h"
#include "fathom/config/derived.h"
#include "fathom/config/rules.h"

namespace fathom::config {
namespace {

void add_task(const LaunchOptions& o, std::vector<Preset>& presets) {
  const auto set = [&](const char* reason, const char* name, std::vector<std::string> words) {
    presets.push_back({name, std::move(words), reason});
  };
  const auto data = [&](const char* name) { return join_path(o.data_dir, name); };
  switch (o.task) {
    case Task::kDapoAime: {
      const char* reason = "task dapo_aime";
      set(reason, "prompt-data", {data("dapo-math-17k/dapo-math-17k.jsonl")});
      set(reason, "input-key", {"prompt"});
      set(reason, "rollout-max-response-len", {"4096"});
      set(reason, "apply-chat-template-kwargs", {"{\"thinking_mode\":\"thinking\"}"});
      set(reason, "eval-prompt-data", {"aime", data("aime-2024/aime-2024.jsonl")});
      set(reason, "n-samples-per-eval-prompt", {"8"});
      set(reason, "eval-max-response-len", {"4096"});
      break;
    }
    case Task::kGsm8k: {
      const char* reason = "task gsm8k";
      set(reason, "prompt-data", {data("gsm8k/train.parquet")});
      set(reason, "input-key", {"messages"});
      set(reason, "rollout-max-response-len", {"256"});
      set(reason, "eval-prompt-data", {"gsm8k", data("gsm8k/test.parquet")});
      set(reason, "n-samples-per-eval-prompt", {"1"});
      set(reason, "eval-max-response-len", {"256"});
      break;
    }
    case Task::kDigitSum: {
      const char* reason = "task digit_sum";
      set(reason, "prompt-data", {data("digit_sum/train.jsonl")});
      set(reason, "input-key", {"prompt"});
      set(reason, "rollout-max-response-len", {"16"});
      set(reason, "apply-chat-template-kwargs", {"{\"thinking_mode\":\"chat\"}"});
      set(reason, "eval-prompt-data", {"digit_sum", data("digit_sum/heldout.jsonl")});
      set(reason, "n-samples-per-eval-prompt", {"1"});
      set(reason, "eval-max-response-len", {"16"});
      break;
    }
  }
}

}  // namespace

std::vector<Preset> recipe_presets(const Options& options) {
  const LaunchOptions& o = options.launch;
  std::vector<Preset> presets;
  const auto stock = [&](const char* name, std::vector<std::string> words) {
    presets.push_back({name, std::move(words), "the recipe"});
  };
  stock("label-key", {"label"});
  stock("apply-chat-template", {"true"});
  stock("rollout-shuffle", {"true"});
  stock("rm-type", {"math"});
  if (!options.rollout.num_epoch) stock("num-rollout", {"3000"});
  stock("rollout-batch-size", {"32"});
  stock("n-samples-per-prompt", {"8"});
  stock("rollout-temperature", {"0.8"});
  if (!options.train.global_batch_size) stock("num-steps-per-rollout", {"1"});
  stock("kl-loss-type", {"low_var_kl"});
  stock("eps-clip-high", {"0.28"});
  stock("weight-decay", {"0.1"});
  stock("adam-beta2", {"0.98"});
  stock("qkv-format", {"bshd"});
  if (o.mode == Mode::kNormal) {
    presets.push_back({"over-sampling-batch-size", {"512"}, "mode normal"});
    presets.push_back(
        {"dynamic-sampling-filter-path", {"check_reward_nonzero_std"}, "mode normal"});
  }
  if (o.enable_r3 && o.model_name != kPro)
    presets.push_back({"use-rollout-routing-replay", {"true"}, "enable-r3"});
  add_task(o, presets);
  if (o.enable_eval) {
    presets.push_back({"eval-interval", {"20"}, "enable-eval"});
    presets.push_back({"eval-top-p", {"0.7"}, "enable-eval"});
  }
  if (!o.skip_saving) {
    if (o.run_id) {
      const std::string checkpoints = derive(options).checkpoint_path;
      presets.push_back({"load", {checkpoints}, "run-id"});
      presets.push_back({"save", {checkpoints}, "run-id"});
    }
    stock("save-interval", {"20"});
    // Kept apart from a save-interval of one's own, which need not divide 20.
    if (!options.checkpoint.save_interval || 20 % *options.checkpoint.save_interval == 0)
      stock("save-retain-interval", {"20"});
  }
  return presets;
}

}  // namespace fathom::config
