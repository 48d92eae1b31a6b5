// Accuracy of the current weights on a prompt file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/data/prompt.h"
#include "fathom/data/sample.h"
#include "fathom/dist/group.h"
#include "fathom/reward/reward.h"
#include "fathom/rollout/engine.h"

namespace fathom {

struct EvaluationOptions {
  SamplingParams sampling;
  int64_t n_samples_per_prompt = 1;
  uint64_t seed = 42;  // of sampled evaluations; apart from the run's rollout seeds
  RewardType reward = RewardType::kMath;
};

struct EvaluationResult {
  double mean_reward = 0.0;
  std::vector<Sample> samples;  // prompt by prompt
};

/// Every prompt, n samples each. The same weights, prompts and options give the same result.
/// @param ranks who share the prompts, each with an engine of its own; all get the whole result.
EvaluationResult evaluate(Engine* engine, const std::vector<Prompt>& prompts,
                          const EvaluationOptions& options, const dist::Group& ranks = {});

}  // namespace fathom
