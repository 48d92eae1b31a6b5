// Which tokens the next step computes: every running sample decodes one token, and prompts are
// prefilled in chunks beside them. Knows nothing of models and sampling.
//
//   add -> waiting -> prefilling -> [fork into samples] ready -> running -> finished
//
// First come, first served at every stage, so the plan is a function of the order of submission and
// of when samples finished.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
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
  GeneratedText text;
  Completion completion;  // filled as tokens arrive
  bool finished = false;
  int64_t num_tokens() const;  // prompt and generated
};

/// A request with its samples. The prompt's state is made once; samples start as copies of it.
struct RequestGroup {
  int64_t id = 0;
  Request request;
  int64_t num_prefilled = 0;
  std::unique_ptr<SequenceState> prompt_state;  // until the last sample has started
  ReplayRecord prompt_replay;
  std::vector<float> prompt_log_probs;  // as in Completion
  ListedLogProbs prompt_lists;
  std::vector<int32_t> ending_ids;  // tokens that end an answer
  std::vector<RunningSample> samples;
  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt_ids.size()); }
  bool is_finished() const;
};

struct SchedulerOptions {
  int64_t max_running_requests = 64;    // samples and prompts that hold a state of their own
  int64_t chunked_prefill_size = 2048;  // prompt tokens of one step, on top of the decoded ones
};

struct PrefillChunk {
  RequestGroup* group;
  int64_t begin, num_tokens;
  bool is_last;  // the prompt ends here: first tokens are drawn
};

struct StepPlan {
  std::vector<RunningSample*> decodes;  // oldest first
  std::vector<PrefillChunk> prefills;   // oldest first
  bool empty() const { return decodes.empty() && prefills.empty(); }
};

class Scheduler {
 public:
  /// Errors: UserError for a limit below 1.
  explicit Scheduler(const SchedulerOptions& options);

  /// The group must outlive its time in the queues.
  void add(RequestGroup* group);

  /// The next step. Samples that start here have no state yet; the caller copies the prompt's.
  /// Valid until the next call of a member.
  const StepPlan& plan();

  /// Takes note that the planned step was computed. Samples marked finished leave; prompts that
  /// ended become samples.
  void complete_step();

  /// Drops the group's unfinished samples from every queue. Not between plan() and
  /// complete_step().
  void remove(RequestGroup* group);

  bool has_work() const;
  int64_t num_running() const;  // slots in use
  int64_t num_waiting() const;  // prompts not begun, and samples without a slot

 private:
  SchedulerOptions options_;
  std::deque<RequestGroup*> waiting_;
  std::vector<RequestGroup*> prefilling_;
  std::deque<RunningSample*> ready_;
  std::vector<RunningSample*> running_;
  StepPlan plan_;
};

}  // namespace fathom
