#include "commands.h"
#include "execution.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/safetensors_writer.h"
#include "fathom/train/score.h"
#include "layout_options.h"
#include "ranks.h"

namespace fathom {
namespace {

int score_on(const dist::Group& ranks, const config::ParsedCommand& command) {
  const config::ToolOptions& o = command.options.tool;
  const std::string& directory = *command.options.launch.hf_checkpoint;
  const Execution execution(command.options.runtime);
  const ModelConfig config = load_model_config(directory);
  const RankGroups groups = rank_groups(ranks, command.options, config);
  const auto sequences = read_token_lines(*o.input, config);
  Weights weights = in_precision(execution.context(),
                                 load_weights(execution.context(), directory,
                                              {.with_mtp = o.with_mtp, .layout = groups.layout}),
                                 command.options);
  const NamedTensors tensors = score(execution.context(), weights, sequences,
                                     {.with_logits = o.with_logits,
                                      .with_gradients = o.with_gradients,
                                      .with_mtp = o.with_mtp,
                                      .chunk_tokens = command.options.engine.chunked_prefill_size},
                                     groups);
  if (ranks.rank() != 0) return 0;
  write_safetensors(*o.output, tensors);
  log_info("scored ", sequences.size(), " sequences into ", *o.output);
  return 0;
}

}  // namespace

int run_score(const config::ParsedCommand& command) {
  return run_on_ranks(command, [&](const dist::Group& ranks) { return score_on(ranks, command); });
}

}  // namespace fathom
