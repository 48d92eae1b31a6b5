#include "train_run.h"

#include "execution.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/load.h"
#include "fathom/config/derived.h"
#include "fathom/rl/rl_run.h"

namespace fathom {
namespace {

/// Weights of a fresh run: the torch_dist directory when there is one, else the checkpoint itself.
Weights initial_weights(const ExecContext& ctx, const config::Options& options) {
  const std::string& directory = *options.launch.hf_checkpoint;
  if (!options.checkpoint.ref_load) return load_weights(ctx, directory, {.with_mtp = true});
  Weights weights = make_weights(load_model_config(directory));
  for_each_parameter(weights, [](Parameter& p) { p.alloc(); });
  load_torch_dist(*options.checkpoint.ref_load, &weights);
  return weights;
}

}  // namespace

void train_from_options(const config::ParsedCommand& command, const config::Options& options) {
  if (!options.launch.hf_checkpoint) {
    throw ConfigError("train: --hf-checkpoint is needed: a model directory with config and tokenizer");
  }
  const config::Derived derived = config::derive(options);
  const Execution execution(options.runtime);
  const Tokenizer tokenizer = Tokenizer::load(*options.launch.hf_checkpoint);
  Weights weights = initial_weights(execution.context(), options);
  RlRun run(execution.context(), &weights, tokenizer, options, derived.run_path,
            config::to_json(command));
  run.run();
}

}  // namespace fathom
