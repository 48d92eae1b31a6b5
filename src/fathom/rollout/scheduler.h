// Which tokens the next step computes: every running sample decodes, and prompts are prefilled in
// chunks beside them. Knows nothing of models and sampling; asks SchedulerMemory for memory.
//
//   add -> waiting -> prefilling -> [fork into samples] waiting -> running -> finished
//             ^_________ preempted ________|                ^____ preempted ____|
//
// Everything that waits or runs has a rank: earlier arrivals first, where a priority p counts as
// having arrived p * kStepsPerPriority steps earlier. Memory, slots and prefill tokens are given in
// that order and taken back from the last, so the first always gets on, nobody is overtaken without
// end, and the plan is a function of the order of submission and of when samples finished.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "fathom/model/sequence_state.h"
#include "fathom/rollout/generated_text.h"
#include "fathom/rollout/request.h"

namespace fathom {

struct RequestGroup;

/// One sample on its way.
struct RunningSample {
  RequestGroup* group = nullptr;
  std::unique_ptr<SequenceState> state;  // while running
  bool shares_prompt_pages = false;      // state is a copy of the prompt's
  int64_t num_computed = 0;              // tokens that state holds
  std::vector<int32_t> drafts;           // guesses that the step under way verifies
  GeneratedText text;
  Completion completion;  // filled as tokens arrive
  bool finished = false;
  int64_t num_tokens() const;  // prompt and generated
};

/// A request with its samples. The prompt's state is made once; samples start as copies of it.
struct RequestGroup {
  int64_t id = 0;
  Request request;
  int64_t arrival = 0;  // step of submission, less what the priority counts
  int64_t num_prefilled = 0;
  bool is_prompted = false;                     // first tokens are drawn
  std::unique_ptr<SequenceState> prompt_state;  // until the last sample has started
  ReplayRecord prompt_replay;
  int64_t num_cached_tokens = 0;        // as in Completion
  std::vector<float> prompt_log_probs;  // as in Completion
  ListedLogProbs prompt_lists;
  std::vector<int32_t> ending_ids;  // tokens that end an answer
  std::vector<RunningSample> samples;
  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt_ids.size()); }
  bool is_finished() const;
};

/// A prompt to prefill, or a sample to decode.
struct Work {
  RequestGroup* group = nullptr;
  RunningSample* sample = nullptr;  // null: the group's prompt
  friend bool operator==(const Work&, const Work&) = default;
};

/// The prompt, and for a sample its answer so far and its drafts.
std::vector<int32_t> tokens_of(const Work& work);

struct ByRank {
  bool operator()(const Work& a, const Work& b) const;
};

/// Where states come from. This one gives without limit and keeps no state at all.
class SchedulerMemory {
 public:
  virtual ~SchedulerMemory() = default;
  /// Makes a state. @return tokens that it holds already, or -1 when there is no memory.
  virtual int64_t start(const Work& work) { return tokens_at_start(work); }
  /// Makes room for the next tokens. @return false when there is none.
  virtual bool reserve(const Work&, int64_t /*num_tokens*/) { return true; }
  /// Forgets the state. A prompt that is done may be named too: its state is kept for the samples
  /// that did not start yet, which then have to be computed from their tokens.
  virtual void drop(const Work&) {}
  /// Whether it cannot decode in its first step.
  virtual bool needs_prefill(const Work& work) const { return work.sample == nullptr; }
  /// Whether to start `work` beside what runs; `kept` are groups whose prompt's state is kept.
  virtual bool may_start(const Work&, const std::vector<Work>& /*running*/,
                         const std::vector<RequestGroup*>& /*kept*/) {
    return true;
  }
  /// Whether a prompt should wait for another one that is computing what both begin with.
  virtual bool shares_beginning(const RequestGroup&, const RequestGroup& /*prefilling*/) {
    return false;
  }

 protected:
  static int64_t tokens_at_start(const Work& work);
};

struct SchedulerOptions {
  int64_t max_running_requests = 64;    // samples and prompts that hold a slot
  int64_t chunked_prefill_size = 2048;  // prompt tokens of one step, on top of the decoded ones
};

struct PrefillChunk {
  RequestGroup* group;
  int64_t begin, num_tokens;
  bool is_last;  // the prompt ends here: first tokens are drawn
};

/// Tokens of a preempted sample, computed again.
struct RecomputeChunk {
  RunningSample* sample;
  int64_t begin, num_tokens;
  bool is_last;  // a token is drawn
};

struct StepPlan {
  std::vector<RunningSample*> decodes;  // by rank, as the next two
  std::vector<RecomputeChunk> recomputes;
  std::vector<PrefillChunk> prefills;
  bool empty() const { return decodes.empty() && recomputes.empty() && prefills.empty(); }
};

class Scheduler {
 public:
  static constexpr int64_t kStepsPerPriority = 256;

  /// @param memory must outlive the scheduler; null: without limit.
  /// Errors: UserError for a limit below 1.
  explicit Scheduler(const SchedulerOptions& options, SchedulerMemory* memory = nullptr);

  /// The group must outlive its time in the queues.
  void add(RequestGroup* group);

  /// The next step. Valid until the next call of a member.
  const StepPlan& plan();

  /// Takes note that the planned step was computed. Samples marked finished leave; prompts that
  /// ended become samples.
  void complete_step();

  /// Drops the group's unfinished samples from every queue. Not between plan() and
  /// complete_step().
  void remove(RequestGroup* group);

  /// Takes the states of everything unfinished away; it goes on from its tokens. Not between
  /// plan() and complete_step().
  void preempt_all();

  bool has_work() const;
  const std::vector<Work>& running() const { return running_; }                  // by rank
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }  // slots in use
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  // Tokens of the preempted at that moment: of their prompts, and of what was generated.
  int64_t num_preempted_prompt_tokens() const { return num_preempted_prompt_tokens_; }
  int64_t num_preempted_answer_tokens() const { return num_preempted_answer_tokens_; }

 private:
  SchedulerMemory& memory();
  void plan_running(int64_t* budget);
  void start_waiting(int64_t* budget);
  void force_first(int64_t* budget);
  bool make_room(const Work& work, int64_t num_tokens);
  int64_t tokens_to_plan(const Work& work, int64_t budget) const;
  void plan_work(const Work& work, int64_t num_tokens, int64_t* budget);
  bool start(const Work& work, int64_t* budget);
  void preempt(const Work& work);
  std::vector<RequestGroup*> kept_prompts();
  bool waits_for_other(const RequestGroup& group);

  SchedulerOptions options_;
  SchedulerMemory unlimited_;
  SchedulerMemory* memory_;
  std::set<Work, ByRank> waiting_;
  std::vector<Work> running_;            // by rank
  std::vector<RequestGroup*> prompted_;  // by rank: groups whose prompt's state may still be kept
  int64_t num_plans_ = 0, num_preemptions_ = 0;
  int64_t num_preempted_prompt_tokens_ = 0, num_preempted_answer_tokens_ = 0;
  StepPlan plan_;
};

}  // namespace fathom
