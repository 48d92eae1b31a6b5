#include "commands.h"
#include "execution.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/export_hf.h"
#include "fathom/checkpoint/load.h"
#include "fathom/parallel/model_parts.h"
#include "fathom/rl/sft_run.h"
#include "fathom/tokenizer/tokenizer.h"
#include "layout_options.h"
#include "ranks.h"

namespace fathom {
namespace {

Weights initial_weights(const ExecContext& ctx, const config::Options& o, const ModelConfig& config,
                        const Layout& layout) {
  if (o.sft.init == config::SftInit::kCheckpoint) {
    return load_weights(ctx, *o.launch.hf_checkpoint, {.with_mtp = true, .layout = layout});
  }
  Weights weights = make_weights(config, /*with_mtp=*/true, layout);
  init_random_weights(weights, static_cast<uint64_t>(o.train.seed));
  return weights;
}

int sft_on(const dist::Group& ranks, const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  const bool is_random = o.sft.init == config::SftInit::kRandom;
  if (is_random && (!o.sft.model_config || !o.sft.tokenizer_dir)) {
    throw ConfigError("sft: --init random needs --model-config FILE and --tokenizer-dir DIR");
  }
  if (!is_random && !o.launch.hf_checkpoint) {
    throw ConfigError("sft: --init checkpoint needs --hf-checkpoint DIR");
  }
  const Execution execution(o.runtime);
  check_export_output(*o.tool.output);
  const std::string tokenizer_dir =
      o.sft.tokenizer_dir.value_or(o.launch.hf_checkpoint.value_or(""));
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_dir);
  const ModelConfig config =
      is_random ? parse_model_config(read_json_file(*o.sft.model_config), *o.sft.model_config)
                : load_model_config(*o.launch.hf_checkpoint);
  const RankGroups groups = rank_groups(ranks, o, config);
  Weights weights = in_precision(execution.context(),
                                 initial_weights(execution.context(), o, config, groups.layout), o);
  const auto examples =
      read_supervised_examples(o, tokenizer, weights.config.max_position_embeddings);
  log_info("sft: ", examples.size(), " examples, ", o.sft.sft_steps, " steps");
  fathom::run_sft(execution.context(), &weights, examples, o, groups);
  if (!groups.has_whole_model()) weights = gather_weights(groups, weights);
  if (ranks.rank() != 0) return 0;
  export_hf(execution.context(), weights, {.output = *o.tool.output, .companions = tokenizer_dir});
  log_info("sft: wrote ", *o.tool.output);
  return 0;
}

}  // namespace

/// Trains on --prompt-data and writes a BF16 model directory to --output.
int run_sft(const config::ParsedCommand& command) {
  return run_on_ranks(command, [&](const dist::Group& ranks) { return sft_on(ranks, command); });
}

}  // namespace fathom
