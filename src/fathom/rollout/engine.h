// The rollout engine, in process: requests in, completions out, one forward per step for everything
// that runs. It computes with the trainer's own weights; there is no second model and no copy.
//
// An answer depends on its prompt, its sampling parameters and its seed, bit for bit; never on what
// ran beside it, on the limits below, or on the order of submission.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/exec_context.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"
#include "fathom/rollout/request.h"
#include "fathom/rollout/sampler.h"
#include "fathom/rollout/scheduler.h"
#include "fathom/rollout/state_memory.h"
#include "fathom/rollout/step_model.h"

namespace fathom {

/// Appends the bytes of one token.
using AppendToken = std::function<void(int32_t token_id, std::string* text)>;

/// Told of a sample after each token that did not end it, on the thread that steps. Fields of
/// Completion that are known only at the end, `text` among them, are not set yet.
using OnToken = std::function<void(const Completion& so_far)>;

struct EngineOptions {
  int64_t max_running_requests = 64;
  int64_t chunked_prefill_size = 2048;
  int64_t page_size = 0;            // tokens a state page covers; 0: default_page_size()
  int64_t max_queued_requests = 0;  // unfinished requests beyond which submit refuses; 0: no limit
  int64_t state_bytes = 0;          // memory for states and cached prefixes; 0: no limit
  Admission admission = Admission::kEstimate;
  bool prefix_cache = true;      // keep the states of prompts for requests that begin the same
  bool cache_answers = true;     // those of answers too, for conversations that go on
  int64_t num_draft_tokens = 0;  // guessed and verified at a time; needs a model that can draft
  AppendToken append_token;      // null: no text, and stop strings are refused
  OnToken on_token;              // may be null
};

/// Too many unfinished requests; try again later.
class QueueFullError : public UserError {
 public:
  using UserError::UserError;
};

enum class PauseMode {
  kAbort,    // unfinished requests end with what they have
  kInPlace,  // nothing moves, states stay
  kRetract,  // states are dropped; requests go on from their tokens, under whatever weights there
             // are
};

/// Counted since the engine was made.
struct EngineCounters {
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;      // computed, those of the cache not counted
  int64_t num_recomputed_tokens = 0;  // of preempted samples
  int64_t num_generated_tokens = 0;
  int64_t num_verified = 0;  // times that drafts of a sample were computed
  int64_t num_drafted = 0, num_accepted = 0;
  int64_t num_preemptions = 0;
  int64_t num_preempted_prompt_tokens = 0, num_preempted_answer_tokens = 0;
  PrefixCacheCounters prefix_cache;
  int64_t num_cached_pages = 0;  // now
  /// Share of drafted tokens that were right; 0 without any.
  double acceptance_rate() const;
};

struct ReleasedMemory {
  int64_t state_bytes = 0;                          // given back by the pools
  int64_t resident_before = 0, resident_after = 0;  // of the process; 0 where unknown
};

class Engine {
 public:
  /// @param weights must outlive the engine; read at every step.
  /// Errors: UserError for a limit below 1, a page size that does not fit the model, or drafts
  /// without a model that can make them.
  Engine(const ExecContext& ctx, const Weights& weights, const EngineOptions& options);
  Engine(const ExecContext& ctx, const ModelConfig& config, std::unique_ptr<StepModel> model,
         const EngineOptions& options);

  /// Queues a request. @return its id, counting up from 0.
  /// Errors: UserError: empty prompt, id out of range, prompt longer than the model, no seeds, bad
  /// sampling parameters or lists, stop strings without append_token, a request whose state would
  /// not fit into memory alone; QueueFullError.
  int64_t submit(Request request);

  /// Computes one step. @return false when there was nothing to do, or the engine is paused.
  /// Errors: UserError for logits that are not numbers; the engine is then to be dropped.
  bool step();

  /// What has finished since the last call, in the order of finishing.
  std::vector<Completion> take_completions();

  /// Steps until nothing is left. @return everything not yet taken, by (request id, sample).
  std::vector<Completion> run_until_done();

  /// Ends a request's unfinished samples with what they have; they finish as kAbort. Unknown and
  /// finished ids are ignored.
  void abort(int64_t request_id);
  void abort_all();

  /// No steps until resume(). Requests may be submitted and aborted meanwhile.
  void pause(PauseMode mode);
  void resume() { paused_.reset(); }
  bool is_paused() const { return paused_.has_value(); }

  bool has_work() const { return scheduler_.has_work(); }
  const Scheduler& scheduler() const { return scheduler_; }
  EngineCounters counters() const;
  /// Bytes of states by kind, and the budget.
  const StatePools& state_pools() const { return space_->pools; }
  const StateLayout& state_layout() const { return space_->layout; }
  /// Share of the tokens still allowed that memory is set aside for; see Admission::kEstimate.
  double reserved_share() const { return memory_.reserved_share(); }

  /// Forgets all cached prefixes.
  void flush_cache() { memory_.cache().clear(); }

  /// Gives the memory of states back to the system, for training; no step until take_memory().
  /// Errors: InternalError while a request is under way, unless paused with kRetract.
  ReleasedMemory release_memory();
  void take_memory() { memory_released_ = false; }

  /// Says that the weights' values have changed. No state made with the old ones lives on.
  /// Errors: InternalError while requests are unfinished, unless paused with kRetract.
  void set_weight_version(int64_t version);
  int64_t weight_version() const { return weight_version_; }

  Engine(const Engine&) = delete;  // the scheduler points at the memory
  Engine& operator=(const Engine&) = delete;

 private:
  /// A page of tokens that the step under way completes, for the prefix cache.
  struct PageEnd {
    Work work;
    int64_t num_tokens;
    StateBlock* checkpoint;  // null: the state ends there, and is copied after the step
  };
  /// A running sample's next token with the guesses behind it.
  struct Trial {
    RunningSample* sample;
    std::vector<int32_t> tokens;   // the answer so far and the drafts
    std::vector<StateBlock> undo;  // the state before each draft
    size_t first_draw = 0;
    size_t num_draws = 0;  // of the draws, those that count: the right drafts and one
  };

  // engine.cc
  void check_request(const Request& request) const;
  void finish(RunningSample* sample, FinishReason reason);
  void drop_finished_groups();
  bool holds_no_state() const;
  bool draws_tokens(const RequestGroup& group) const;

  // engine_step.cc
  void draft_tokens(const StepPlan& plan);
  int64_t num_drafts_wanted(const RunningSample& sample) const;
  Draw draw_of(const RunningSample& sample, const float* logits,
               std::span<const int32_t> generated) const;
  void build_batch(const StepPlan& plan);
  Segment& add_segment(const Work& work, SequenceState* state, std::span<const int32_t> tokens);
  void watch_page_ends(const Work& work, Segment* segment, Trial* trial);
  void add_prefill(const PrefillChunk& chunk);
  void add_draws(const StepPlan& plan, const Tensor& logits);
  void settle_trials();
  void cache_pages();
  void score_prompt(const PrefillChunk& chunk, const float* logits);
  void add_token(RunningSample* sample, DrawnToken token);
  static std::pair<int64_t, int64_t> scored_positions(const PrefillChunk& chunk);

  ExecContext ctx_;
  ModelConfig config_;
  EngineOptions options_;
  std::unique_ptr<StepModel> model_;
  std::shared_ptr<StateSpace> space_;
  StateMemory memory_;
  Scheduler scheduler_;
  Sampler sampler_;
  std::map<int64_t, std::unique_ptr<RequestGroup>> groups_;  // unfinished, by id
  std::vector<Completion> completions_;
  int64_t next_id_ = 0;
  int64_t weight_version_ = 0;
  bool any_finished_ = false, memory_released_ = false;
  std::optional<PauseMode> paused_;
  EngineCounters counters_;

  // Of the step under way, reused.
  Batch batch_;
  std::vector<int64_t> rows_;
  std::deque<Trial> trials_;  // one per decode
  std::vector<Draw> draws_;
  std::vector<DrawnToken> drawn_;
  std::vector<RunningSample*> drawn_for_;  // of the draws behind those of the trials
  std::vector<PageEnd> page_ends_;
  std::deque<StateBlock> page_blocks_;
};

/// A multiple of every compress ratio of the model: 256 or the next one above, 16 for small models
/// whose ratios all divide it.
int64_t default_page_size(const ModelConfig& config);

}  // namespace fathom
