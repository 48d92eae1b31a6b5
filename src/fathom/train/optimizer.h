// Adam over the trained parameters: global norm clipping, decoupled decay, exact state.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/base/json.h"
#include "fathom/model/weights.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.98, eps = 1e-8;
  double weight_decay = 0.1;  // on trained tensors of two or more dimensions
  double clip_grad = 1.0;     // global L2 norm; 0: no clipping
};

/// Moments of one parameter, in its master's layout; undefined where another member keeps them.
struct AdamMoments {
  Parameter* parameter;
  Tensor exp_avg, exp_avg_sq;
};

class Optimizer {
 public:
  /// @param is_trained which parameters move (of those with a gradient); their grad buffers are
  /// made. `weights` must outlive the optimizer.
  /// @param groups ranks with the same parameters, each with the gradient of its share of the
  /// samples in its buffers: each keeps the moments of some parameters and moves those for all.
  Optimizer(Weights& weights, const OptimizerOptions& options,
            const std::function<bool(const Parameter&)>& is_trained, RankGroups groups = {});

  /// Applies one step with the gradients in the buffers (summed over the ranks in rank order), then
  /// clears them. The norm is that of the whole tensors, in name order, whoever has their parts.
  /// mtp.* is clipped as a group of its own, so that the main model's bits do not depend on it.
  /// @return L2 norm of the main model's gradient before clipping.
  /// Errors: UserError when a gradient is NaN or infinite; no weight is changed then.
  double step(const ExecContext& ctx, double lr);

  void zero_grad();
  /// For a checkpoint: the moments of this rank's parts, each on the first replica of its part
  /// (RankGroups::is_first_replica). Of one rank's optimizer it is the state itself.
  std::vector<AdamMoments> gathered_moments() const;
  /// Memory for all moments, to be filled from a checkpoint: this member's own are the state
  /// itself, the others' are to be dropped.
  std::vector<AdamMoments> moments_to_fill() const;
  const OptimizerOptions& options() const { return options_; }

  /// Running products β^t and the step count, for checkpoints (exact).
  Json scalars() const;
  void set_scalars(const Json& json, const std::string& origin);

 private:
  bool is_mine(size_t i) const { return owners_[i] == groups_.replicas(*parameters_[i]).rank(); }
  bool is_counted(size_t i) const;
  void agree_on_names();
  void share_embedding();
  struct SquaredNorms {
    double main = 0.0, mtp = 0.0;
  };
  SquaredNorms squared_grad_norms(const ExecContext& ctx) const;

  OptimizerOptions options_;
  RankGroups groups_;
  Parameter* embedding_ = nullptr;  // where the last stage has a copy: its, and the first stage's
  std::vector<Parameter*> parameters_;  // trained, sorted by name
  std::vector<int> owners_;             // by parameter: the member that keeps its moments
  std::vector<AdamMoments> moments_;    // likewise
  // The trained parameters of the whole model in name order, and where the squared norm of each
  // stands in those of all ranks, rank by rank.
  std::vector<std::pair<std::string, size_t>> all_names_;
  int64_t num_steps_ = 0;
  float beta1_power_ = 1.0f, beta2_power_ = 1.0f;  // β^t
};

}  // namespace fathom
