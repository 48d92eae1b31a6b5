#include "commands.h"
#include "execution.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/load.h"
#include "fathom/rl/evaluation.h"
#include "fathom/rl/rl_options.h"
#include "fathom/rl/sample_metrics.h"
#include "fathom/rollout/engine_options.h"
#include "fathom/rollout/generate.h"
#include "fathom/tokenizer/tokenizer.h"

namespace fathom {
namespace {

Json answers_of(const EvaluationResult& result, const std::string& name) {
  Json lines = Json::array();
  for (const Sample& s : result.samples) {
    lines.push_back({{"dataset", name},
                     {"prompt", s.prompt},
                     {"label", s.label},
                     {"response", s.response},
                     {"reward", s.reward}});
  }
  return lines;
}

}  // namespace

/// Evaluates a checkpoint on the sets of --eval-prompt-data; with --output, the answers too.
int run_eval(const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  if (!o.launch.hf_checkpoint)
    throw ConfigError("eval: --hf-checkpoint is needed: a model directory");
  std::vector<std::string> sets = o.eval.eval_prompt_data;
  if (sets.size() == 1) sets.insert(sets.begin(), "aime");  // one path alone, as in training
  if (sets.empty() || sets.size() % 2 != 0) {
    throw ConfigError(
        str_cat("eval: --eval-prompt-data needs NAME PATH pairs, got ", sets.size(), " values"));
  }
  const Execution execution(o.runtime);
  const Tokenizer tokenizer = Tokenizer::load(*o.launch.hf_checkpoint);
  std::vector<std::pair<std::string, std::vector<Prompt>>> data;
  for (size_t i = 0; i < sets.size(); i += 2) {
    data.emplace_back(sets[i], read_prompt_file(o, sets[i + 1], tokenizer, true).prompts);
  }
  EngineOptions for_engine = engine_options(o);
  for_engine.append_token = append_token_of(tokenizer);
  for_engine.cache_answers = false;
  const ExecContext& ctx = execution.context();
  const LoadOptions parts = {.with_mtp = for_engine.num_draft_tokens > 0};
  const Weights weights = in_precision(ctx, load_weights(ctx, *o.launch.hf_checkpoint, parts), o);
  Engine engine(ctx, weights, for_engine);
  std::string lines;
  for (const auto& [name, prompts] : data) {
    const EvaluationResult result = evaluate(&engine, prompts, evaluation_options(o));
    Json line = {{"dataset", name}, {"accuracy", result.mean_reward}, {"prompts", prompts.size()}};
    MetricList numbers;
    std::vector<const Sample*> samples;
    for (const Sample& s : result.samples) samples.push_back(&s);
    add_sample_metrics("eval", samples, &numbers);
    for (const auto& [key, value] : numbers) line[key] = value;
    std::printf("%s\n", line.dump().c_str());
    for (const Json& answer : answers_of(result, name)) {
      lines += answer.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
  }
  if (o.tool.output) write_file_atomic(*o.tool.output, lines);
  return 0;
}

}  // namespace fathom
