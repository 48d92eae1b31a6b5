#include "fathom/rl/sft_run.h"

#include <chrono>
#include <cstdio>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/data/prompt_cursor.h"
#include "fathom/rl/rl_options.h"
#include "fathom/train/lr_schedule.h"
#include "fathom/train/optimizer.h"

namespace fathom {
namespace {

constexpr int64_t kReportSteps = 20;
constexpr int64_t kDefaultBatch = 64;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::vector<SupervisedExample> read_supervised_examples(const config::Options& options,
                                                        const Tokenizer& tokenizer,
                                                        int64_t max_tokens) {
  if (!options.data.prompt_data)
    throw ConfigError("--prompt-data is needed: a .jsonl or .parquet file of examples");
  // The answer travels as the label: one reader of prompt files is enough.
  config::Options with_answer = options;
  with_answer.data.label_key = options.sft.response_key;
  const PromptFile file = read_prompt_file(with_answer, *options.data.prompt_data, tokenizer,
                                           /*for_eval=*/false, "--response-key");
  const std::vector<int32_t>& eos = tokenizer.special_ids().eos;
  FATHOM_CHECK(!options.sft.append_eos || !eos.empty(), "sft: the tokenizer names no end token\n",
               "  fix: add eos_token_id to its generation_config.json, or pass --no-append-eos");
  std::vector<SupervisedExample> examples;
  for (size_t i = 0; i < file.prompts.size(); ++i) {
    SupervisedExample e;
    e.tokens = file.prompts[i].tokens;
    e.target_begin = static_cast<int64_t>(e.tokens.size());
    const std::vector<int32_t> answer = with_context(
        str_cat("example ", i + 1), [&] { return tokenizer.encode(file.prompts[i].label); });
    e.tokens.insert(e.tokens.end(), answer.begin(), answer.end());
    if (options.sft.append_eos) e.tokens.push_back(eos.front());
    FATHOM_CHECK(e.target_begin < static_cast<int64_t>(e.tokens.size()) &&
                     static_cast<int64_t>(e.tokens.size()) <= max_tokens,
                 "example ", i + 1, ": has ", e.tokens.size(), " tokens, the answer begins at ",
                 e.target_begin, "; needs an answer, and at most ", max_tokens, " tokens");
    examples.push_back(std::move(e));
  }
  return examples;
}

double run_sft(const ExecContext& ctx, Weights* weights,
               const std::vector<SupervisedExample>& examples, const config::Options& options,
               const RankGroups& groups) {
  const int64_t batch = options.train.global_batch_size.value_or(kDefaultBatch);
  const int64_t num_steps = options.sft.sft_steps;
  SupervisedOptions supervised;
  supervised.mtp_loss_scaling_factor = options.train.mtp_loss_scaling_factor;
  if (options.train.max_tokens_per_gpu) {
    supervised.max_tokens_per_micro_batch = *options.train.max_tokens_per_gpu;
  }
  const LrScheduleOptions schedule = lr_schedule_options(options.optimizer, num_steps);
  Optimizer optimizer(
      *weights, optimizer_options(options.optimizer), [](const Parameter&) { return true; }, groups);
  PromptCursor cursor(static_cast<int64_t>(examples.size()), /*shuffle=*/true,
                      static_cast<uint64_t>(options.train.seed));
  double loss = 0.0, mtp_loss = 0.0, last = 0.0, start = now_seconds();
  int64_t reported = 0;
  for (int64_t step = 0; step < num_steps; ++step) {
    std::vector<SupervisedExample> chosen;
    for (int64_t i : cursor.take(batch)) chosen.push_back(examples[static_cast<size_t>(i)]);
    const SupervisedMetrics m =
        supervised_forward_backward(ctx, *weights, chosen, supervised, groups);
    const double grad_norm = optimizer.step(ctx, learning_rate(schedule, step));
    loss += m.loss;
    mtp_loss += m.mtp_loss;
    if ((step + 1) % kReportSteps == 0 || step + 1 == num_steps) {
      const double n = static_cast<double>(step + 1 - reported);
      char text[200];
      std::snprintf(text, sizeof text,
                    "step %ld/%ld  loss %.4f  mtp loss %.4f  grad norm %.3f  %.3f s a step",
                    static_cast<long>(step + 1), static_cast<long>(num_steps), loss / n,
                    mtp_loss / n, grad_norm, (now_seconds() - start) / n);
      log_info(text);
      last = loss / n;
      loss = mtp_loss = 0.0;
      reported = step + 1;
      start = now_seconds();
    }
  }
  return last;
}

}  // namespace fathom
