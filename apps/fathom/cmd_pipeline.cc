// full-train and its stages: the launcher with the functions that do the work.
#include <filesystem>

#include "commands.h"
#include "conversion.h"
#include "execution.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/cast.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/config/derived.h"
#include "fathom/dist/rank_environment.h"
#include "fathom/launch/stages.h"
#include "fathom/rl/rl_run.h"
#include "hub_download.h"
#include "layout_options.h"
#include "name_dialect.h"
#include "ranks.h"
#include "run_hints.h"

namespace fathom {
namespace {

bool is_layout_given(const config::ParsedCommand& command) {
  for (const char* name :
       {"tensor-model-parallel-size", "pipeline-model-parallel-size", "expert-model-parallel-size",
        "expert-tensor-parallel-size", "decoder-first-pipeline-num-layers",
        "decoder-last-pipeline-num-layers"}) {
    if (command.is_given(name)) return true;
  }
  return false;
}

void train(const ExecContext& ctx, const config::ParsedCommand& command,
           const config::Options& options, const dist::Group& ranks) {
  const std::string& checkpoint = *options.launch.hf_checkpoint;
  const Tokenizer tokenizer = Tokenizer::load(checkpoint);
  const ModelConfig model = ModelTensors(checkpoint).config();
  const RankGroups groups = rank_groups(ranks, options, model);
  // The configuration counts MTP modules only where the checkpoint has their tensors.
  Weights weights = make_weights(model, /*with_mtp=*/true, groups.layout);
  for_each_parameter(weights, [](Parameter& p) { p.alloc(); });
  load_torch_dist(ctx, *options.checkpoint.ref_load, &weights);
  Json config = config::to_json(command);
  std::error_code error;  // paths of the options may be relative to it
  config["working_directory"] = std::filesystem::current_path(error).string();
  RlRun(ctx, &weights, tokenizer, options, config::derive(command.options).run_path, config, groups)
      .run();
}

int pipeline_on(const dist::Group& ranks, const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  const bool converts = command.command == config::Command::kPrepareSpmd;
  // They meet in the directory that they write, not as ranks.
  const dist::RankEnvironment process =
      converts ? dist::rank_environment(config::current_environment()) : dist::RankEnvironment{};
  if (converts && process.size == 1 && o.launch.num_procs > 1 && !o.convert.plan_only)
    return start_local_ranks(command);
  if (process.rank == 0) log_info(config::format_option_table(command));
  if (contains(config::kTraining, command.command))
    for (const std::string& hint : run_hints(command)) log_info(hint);
  const Execution execution(o.runtime);
  const ExecContext& ctx = execution.context();
  StageFunctions functions;
  functions.cast_to_bf16 = [&](const std::string& from, const std::string& to) {
    prepare_single(ctx, {.input = from, .output = to, .names = dialect_of(o.convert.names)});
  };
  functions.convert_to_torch_dist = [&](const std::string& from, const std::string& to) {
    if (converts && o.convert.plan_only)
      print_conversion_plans(o, is_layout_given(command), from);
    else
      convert_to_torch_dist(ctx, o, process, from, to);
  };
  functions.is_one_of_several = process.size > 1;
  functions.hub = hub_functions(o);
  functions.train = [&](const config::Options& options) { train(ctx, command, options, ranks); };
  Launcher(command, functions, o.launch.recipe_dir.value_or(default_recipe_dir())).run();
  return 0;
}

}  // namespace

int run_pipeline(const config::ParsedCommand& command) {
  if (config::computes_on_paper(command.command, command.options)) return run_dry(command);
  // Only what trains is computed by several ranks.
  if (!contains(config::kTraining, command.command)) return pipeline_on({}, command);
  return run_on_ranks(command,
                      [&](const dist::Group& ranks) { return pipeline_on(ranks, command); });
}

}  // namespace fathom
