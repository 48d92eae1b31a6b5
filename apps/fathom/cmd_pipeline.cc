// full-train and its stages: the launcher with the functions that do the work.
#include "commands.h"
#include "execution.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/cast.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/prepare_spmd.h"
#include "fathom/launch/stages.h"
#include "fathom/rl/rl_run.h"
#include "hub_download.h"
#include "name_dialect.h"
#include "ranks.h"
#include "run_hints.h"

namespace fathom {
namespace {

void convert(const ExecContext& ctx, const std::string& from, const std::string& to) {
  const ModelTensors source(from);
  for (const std::string& note : source.notes()) log_info("note: ", note);
  prepare_spmd(ctx, source, to);
}

void train(const ExecContext& ctx, const config::ParsedCommand& command,
           const config::Options& options, const dist::Group& ranks) {
  const std::string& checkpoint = *options.launch.hf_checkpoint;
  const Tokenizer tokenizer = Tokenizer::load(checkpoint);
  // The configuration counts MTP modules only where the checkpoint has their tensors.
  Weights weights = make_weights(ModelTensors(checkpoint).config());
  for_each_parameter(weights, [](Parameter& p) { p.alloc(); });
  load_torch_dist(*options.checkpoint.ref_load, &weights);
  RlRun(ctx, &weights, tokenizer, options, config::derive(command.options).run_path,
        config::to_json(command), ranks)
      .run();
}

int pipeline_on(const dist::Group& ranks, const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  log_info(config::format_option_table(command));
  if (contains(config::kTraining, command.command))
    for (const std::string& hint : run_hints(command)) log_info(hint);
  const Execution execution(o.runtime);
  const ExecContext& ctx = execution.context();
  StageFunctions functions;
  functions.cast_to_bf16 = [&](const std::string& from, const std::string& to) {
    prepare_single(ctx, {.input = from, .output = to, .names = dialect_of(o.convert.names)});
  };
  functions.convert_to_torch_dist = [&](const std::string& from, const std::string& to) {
    convert(ctx, from, to);
  };
  functions.hub = hub_functions(o);
  functions.train = [&](const config::Options& options) { train(ctx, command, options, ranks); };
  Launcher(command, functions, o.launch.recipe_dir.value_or(default_recipe_dir())).run();
  return 0;
}

}  // namespace

int run_pipeline(const config::ParsedCommand& command) {
  // Only what trains is computed by several ranks.
  if (!contains(config::kTraining, command.command)) return pipeline_on({}, command);
  return run_on_ranks(command,
                      [&](const dist::Group& ranks) { return pipeline_on(ranks, command); });
}

}  // namespace fathom
