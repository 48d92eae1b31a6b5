// One run of the RL loop: prompts -> rollout -> reward -> train -> evaluate -> save, resumable.
//
// Everything that decides the next step is in the checkpoint (masters, Adam moments, counters, data
// cursor), so a run that is killed and started again ends with the bits of an uninterrupted one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/config/options.h"
#include "fathom/model/weights.h"
#include "fathom/observe/metrics.h"
#include "fathom/observe/trace.h"
#include "fathom/parallel/rank_groups.h"
#include "fathom/rl/evaluation.h"
#include "fathom/rl/rollout_collector.h"
#include "fathom/rl/run_directory.h"
#include "fathom/tokenizer/tokenizer.h"
#include "fathom/train/lr_schedule.h"
#include "fathom/train/optimizer.h"
#include "fathom/train/policy_step.h"
#include "fathom/weight_sync/engine_copy.h"

namespace fathom {

/// A held-out prompt file, evaluated greedily and, where asked, by sampling.
struct EvaluationSet {
  std::string name;
  std::vector<Prompt> prompts;
};

class RlRun {
 public:
  /// @param weights the model; changed by training, read by the engine. Outlives the run. Put into
  /// the precision that the options give the trainer.
  /// @param run_path {save-dir}/{run-id}; @param config the resolved options, saved there.
  /// @param groups who run it together: they share answers, samples, optimizer state and the model
  /// (of which `weights` are this rank's parts), and the first of them writes.
  /// Errors: UserError (data, directory, damaged checkpoint), ConfigError (options that
  /// contradict).
  RlRun(const ExecContext& ctx, Weights* weights, const Tokenizer& tokenizer,
        const config::Options& options, const std::string& run_path, const Json& config,
        RankGroups groups = {});
  ~RlRun();

  /// Runs or resumes to the end. Prints one line a step, the reward curve and answers at the end.
  void run();

  int64_t num_rollouts() const { return num_rollouts_; }

 private:
  void set_precisions();
  /// The engine reads what the trainer has now.
  void sync_engine();
  const Weights& engine_weights() const {
    return engine_copy_ ? engine_copy_->weights() : rollout_weights_;
  }
  /// Ranks that share the requests: of each engine one.
  const dist::Group& engines() const { return engine_copy_ ? groups_.everyone : groups_.engines; }
  bool is_fast() const { return is_fast_; }
  void read_data();
  void resume();
  void run_step(int64_t rollout_id);
  MetricList train(int64_t rollout_id, const RolloutResult& rollout);
  MetricList evaluate_all(int64_t rollout_id);
  void save(int64_t rollout_id);
  void check_frozen_bias() const;
  std::string first_replay_difference(const std::vector<TrainSample>& samples) const;
  void print_summary() const;
  void start_trace();
  void finish_trace();
  bool is_due(const std::optional<int64_t>& interval, int64_t rollout_id) const;

  void save_state(int64_t rollout_id, const Json& scalars);
  bool writes() const { return groups_.everyone.rank() == 0; }

  ExecContext ctx_;
  RankGroups groups_;
  Weights* weights_;
  Weights rollout_weights_;  // the same memory in the engine's layout; with masters of its own form
                             // where rollout's precision is another one
  bool is_fast_ = false;
  std::unique_ptr<EngineCopy> engine_copy_;  // where the engine has a layout of its own
  bool engine_is_behind_ = true;             // the copy is not what the trainer has
  const Tokenizer& tokenizer_;
  config::Options options_;
  std::string run_path_;
  std::optional<RunDirectory> directory_;  // of the rank that writes

  std::vector<Prompt> prompts_;
  std::vector<EvaluationSet> evaluation_sets_;
  std::unique_ptr<PromptCursor> cursor_;
  std::unique_ptr<RolloutCollector> collector_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<MetricsWriter> metrics_;
  LrScheduleOptions schedule_;
  PolicyStepOptions policy_;
  int64_t num_rollouts_ = 0, steps_per_rollout_ = 1, first_rollout_ = 0;
  std::unique_ptr<Trace> trace_;  // while --trace-rollouts are under way
  double process_start_seconds_;
  double last_save_seconds_ = 0.0;  // of the step before: a step is written before it is saved
  std::vector<float> frozen_bias_;  // every gate.bias, in order
};

}  // namespace fathom
