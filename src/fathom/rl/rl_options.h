// From the option structs to what the parts of the loop take, with the rules that join several
// options.
#pragma once

#include <cstdint>

#include "fathom/config/options.h"
#include "fathom/data/prompt.h"
#include "fathom/rl/evaluation.h"
#include "fathom/rl/rollout_collector.h"
#include "fathom/tokenizer/tokenizer.h"
#include "fathom/train/lr_schedule.h"
#include "fathom/train/optimizer.h"
#include "fathom/train/policy_step.h"

namespace fathom {

/// Errors (all three): ConfigError that names the options.
CollectorOptions collector_options(const config::Options& options);
PolicyStepOptions policy_step_options(const config::Options& options);
OptimizerOptions optimizer_options(const config::OptimizerOptions& options);

/// Optimizer steps per rollout: num_steps_per_rollout, or rollout samples / global_batch_size.
int64_t steps_per_rollout(const config::Options& options);
/// num_rollout, or num_epoch times whole batches of the prompts.
int64_t num_rollouts(const config::Options& options, int64_t num_prompts);
LrScheduleOptions lr_schedule_options(const config::OptimizerOptions& options, int64_t num_steps);

/// Evaluation at the eval-* options, the rollout's where unset.
EvaluationOptions evaluation_options(const config::Options& options);
/// The sampled companion: the rollout's own sampling.
EvaluationOptions sampled_evaluation_options(const config::Options& options);

/// Reads a prompt file with the tokenizer's chat encoding. @param for_eval eval-* keys and limits.
/// @param label_option what messages call the label's field.
PromptFile read_prompt_file(const config::Options& options, const std::string& path,
                            const Tokenizer& tokenizer, bool for_eval,
                            const std::string& label_option = "--label-key");

}  // namespace fathom
