// The rollout engine, in process: requests in, completions out, one forward per step for everything
// that runs. It computes with the trainer's own weights; there is no second model and no copy.
//
// An answer depends on its prompt, its sampling parameters and its seed, bit for bit; never on what
// ran beside it, on the limits below, or on the order of submission.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"
#include "fathom/rollout/request.h"
#include "fathom/rollout/sampler.h"
#include "fathom/rollout/scheduler.h"

namespace fathom {

/// Appends the bytes of one token.
using AppendToken = std::function<void(int32_t token_id, std::string* text)>;

/// Told of a sample after each token that did not end it, on the thread that steps. Fields of
/// Completion that are known only at the end, `text` among them, are not set yet.
using OnToken = std::function<void(const Completion& so_far)>;

struct EngineOptions {
  int64_t max_running_requests = 64;
  int64_t chunked_prefill_size = 2048;
  int64_t page_size = 0;  // tokens a state page covers; 0: the smallest that fits the model, >= 16
  AppendToken append_token;  // null: no text, and stop strings are refused
  OnToken on_token;          // may be null
};

/// The model as the engine sees it: computes a batch, advances its states, and gives the logits of
/// the rows asked for.
class StepModel {
 public:
  virtual ~StepModel() = default;
  /// @return [rows, V] fp32; undefined tensor when rows is empty.
  virtual Tensor step(const Batch& batch, const std::vector<int64_t>& rows) = 0;
};

class Engine {
 public:
  /// @param weights must outlive the engine; read at every step.
  /// Errors: UserError for a limit below 1 or a page size that does not fit the model.
  Engine(const ExecContext& ctx, const Weights& weights, const EngineOptions& options);
  Engine(const ExecContext& ctx, const ModelConfig& config, std::unique_ptr<StepModel> model,
         const EngineOptions& options);

  /// Queues a request. @return its id, counting up from 0.
  /// Errors: UserError: empty prompt, id out of range, prompt longer than the model, no seeds, bad
  /// sampling parameters or lists, stop strings without append_token.
  int64_t submit(Request request);

  /// Computes one step. @return false when there was nothing to do.
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

  bool has_work() const { return scheduler_.has_work(); }
  const Scheduler& scheduler() const { return scheduler_; }

  /// Says that the weights' values have changed. No state made with the old ones may live on.
  /// Errors: InternalError while requests are unfinished.
  void set_weight_version(int64_t version);
  int64_t weight_version() const { return weight_version_; }

 private:
  void build_batch(const StepPlan& plan);
  void start_sample(RunningSample* sample);
  void draw_tokens(const StepPlan& plan, const Tensor& logits);
  void score_prompt(const PrefillChunk& chunk, const float* logits);
  void add_token(RunningSample* sample, DrawnToken token);
  void finish(RunningSample* sample, FinishReason reason);
  void drop_finished_groups();
  bool draws_tokens(const RequestGroup& group) const;
  static std::pair<int64_t, int64_t> scored_positions(const PrefillChunk& chunk);

  ExecContext ctx_;
  ModelConfig config_;
  EngineOptions options_;
  std::unique_ptr<StepModel> model_;
  Scheduler scheduler_;
  Sampler sampler_;
  std::map<int64_t, std::unique_ptr<RequestGroup>> groups_;  // unfinished, by id
  std::vector<Completion> completions_;
  int64_t next_id_ = 0;
  int64_t weight_version_ = 0;
  bool any_finished_ = false;

  // Reused from step to step.
  Batch batch_;
  std::vector<int64_t> rows_;
  std::vector<Draw> draws_;
  std::vector<DrawnToken> drawn_;
  std::vector<RunningSample*> drawn_for_;
};

/// The smallest multiple of every compress ratio of the model that is at least 16.
int64_t default_page_size(const ModelConfig& config);

}  // namespace fathom
