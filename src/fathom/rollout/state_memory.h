// The engine's memory: states of prompts and samples from pools of pages, and what the scheduler
// has to know of them: whether something fits now, and whether it would still fit when it has
// grown.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fathom/rollout/prefix_cache.h"
#include "fathom/rollout/scheduler.h"

namespace fathom {

/// What is set aside for tokens that are yet to be drawn.
enum class Admission {
  kWorstCase,  // all of max_new_tokens: nothing that runs is ever preempted
  kEstimate,   // a share of them that falls while all goes well and rises after a preemption
};

struct StateMemoryOptions {
  bool use_prefix_cache = true;
  Admission admission = Admission::kEstimate;
  int64_t max_positions = 0;     // of the model
  int64_t max_cached_pages = 0;  // 0: as many as the budget allows
};

class StateMemory : public SchedulerMemory {
 public:
  /// @param empty_replay a record with the model's sizes
  StateMemory(std::shared_ptr<StateSpace> space, const ReplayRecord& empty_replay,
              const StateMemoryOptions& options);

  int64_t start(const Work& work) override;
  bool reserve(const Work& work, int64_t num_tokens) override;
  void drop(const Work& work) override;
  bool needs_prefill(const Work& work) const override;
  bool may_start(const Work& work, const std::vector<Work>& running,
                 const std::vector<RequestGroup*>& kept) override;
  bool shares_beginning(const RequestGroup& group, const RequestGroup& prefilling) override;

  // Memory for things that are worth only what lies idle: a free block, or one that the prefix
  // cache gives up. An empty block when all memory is at work.
  StateBlock spare_block();  // contents undefined
  StateBlock spare_copy(const StateBlock& block);
  /// As reserve(), for a running state.
  bool reserve_more(SequenceState* state, int64_t num_tokens);

  /// Bytes of the most that one sample of the request can need when it runs alone.
  int64_t worst_case_bytes(const Request& request) const;

  StateSpace& space() { return *space_; }
  PrefixCache& cache() { return cache_; }
  const PrefixCache& cache() const { return cache_; }
  bool uses_cache() const { return options_.use_prefix_cache; }
  const ReplayRecord& empty_replay() const { return empty_replay_; }

  /// Told after every step, for the estimate.
  void note_step(int64_t num_preemptions, const std::vector<Work>& running);

  double reserved_share() const { return share_; }

  /// Tokens of the prompt that may come from the cache.
  static int64_t max_cached(const Request& request);

 private:
  std::unique_ptr<SequenceState> make_state(std::span<const int32_t> tokens, int64_t max_cached,
                                            ReplayRecord* replay);
  int64_t start_sample(RunningSample* sample);
  int64_t expected_tokens(const RequestGroup& group, int64_t num_generated, double share) const;
  int64_t sample_bytes(const RequestGroup& group, int64_t num_generated) const;
  int64_t prompt_page_bytes(const RequestGroup& group) const;

  std::shared_ptr<StateSpace> space_;
  ReplayRecord empty_replay_;
  StateMemoryOptions options_;
  PrefixCache cache_;
  double share_;  // of the tokens still allowed that are set aside
};

}  // namespace fathom
