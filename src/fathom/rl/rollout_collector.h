// Prompts -> graded groups of samples, in the order of submission.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/data/prompt.h"
#include "fathom/data/prompt_cursor.h"
#include "fathom/data/sample.h"
#include "fathom/dist/group.h"
#include "fathom/observe/metrics.h"
#include "fathom/reward/reward.h"
#include "fathom/rollout/engine.h"

namespace fathom {

struct CollectorOptions {
  int64_t rollout_batch_size = 1;        // groups that a rollout returns
  int64_t over_sampling_batch_size = 1;  // groups that are submitted at a time
  int64_t n_samples_per_prompt = 1;
  bool keep_only_reward_spread = false;  // drop groups whose rewards are all equal
  SamplingParams sampling;
  int64_t max_context_tokens = 0;  // prompt and response together; 0: the model's limit alone
  uint64_t rollout_seed = 42;
  RewardType reward = RewardType::kMath;
  bool record_replay = false;
};

struct RolloutResult {
  std::vector<SampleGroup> groups;       // rollout_batch_size of them, in the order of submission
  int64_t num_submitted = 0;             // groups
  std::map<std::string, int64_t> drops;  // by reason, "zero_std_0.0"
  // Of all answers that finished, in tokens.
  int64_t num_answers = 0, num_prompt_tokens = 0, num_cached_tokens = 0;
  int64_t num_drafted = 0, num_accepted = 0;
  int64_t num_preemptions = 0;
};

struct PendingGroup;

class RolloutCollector {
 public:
  /// @param ranks who share the groups: each runs every size-th of them in its own engine and hears
  /// what the others' have answered, so all of them return the same result.
  RolloutCollector(const std::vector<Prompt>& prompts, PromptCursor* cursor,
                   const CollectorOptions& options, dist::Group ranks = {});

  /// Runs the engine until enough groups are accepted. Groups are accepted in the order of
  /// submission, whatever finished first, so the result does not depend on scheduling; what is
  /// still running then is aborted, its prompts and sample indices are used up.
  RolloutResult collect(Engine* engine);

  /// Run-wide counters for checkpoints.
  Json to_json() const;
  void restore(const Json& json, const std::string& origin);

 private:
  int64_t submit_group(Engine* engine, SampleGroup* group);
  void add_completion(const Completion& completion, SampleGroup* group) const;
  bool is_mine(int64_t group_index) const;
  void step_all(Engine* engine, const std::map<int64_t, PendingGroup*>& by_index,
                std::map<int64_t, PendingGroup*>* by_request, RolloutResult* result) const;
  const std::vector<Prompt>& prompts_;
  PromptCursor* cursor_;
  CollectorOptions options_;
  dist::Group ranks_;
  int64_t next_group_index_ = 0, next_sample_index_ = 0;
};

/// The rollout/* and passrate/* metrics of a rollout.
/// reward.
MetricList rollout_metrics(const RolloutResult& result);

}  // namespace fathom
