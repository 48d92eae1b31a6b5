// Adam over the trained parameters: global norm clipping, decoupled decay, exact state.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
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
  /// @param ranks `replicas` have the same weights, each with the gradient of its share of the
  /// samples in its buffers: each keeps the moments of some parameters and moves those for all.
  /// Over `stages` goes the norm.
  Optimizer(Weights& weights, const OptimizerOptions& options,
            const std::function<bool(const Parameter&)>& is_trained, RankGroups ranks = {});

  /// Applies one step with the gradients in the buffers (summed over the replicas in rank order),
  /// then clears them. mtp.* is clipped as a group of its own, so that the main model's bits do not
  /// depend on it.
  /// @return L2 norm of the main model's gradient, of all stages, before clipping.
  /// Errors: UserError when a gradient is NaN or infinite; no weight is changed then.
  double step(const ExecContext& ctx, double lr);

  void zero_grad();
  /// All moments of the stage on member 0 of the replicas, for a checkpoint; on the others theirs
  /// alone. Of one member's optimizer it is the state itself.
  std::vector<AdamMoments> gathered_moments() const;
  /// Memory for all moments, to be filled from a checkpoint: this member's own are the state
  /// itself, the others' are to be dropped.
  std::vector<AdamMoments> moments_to_fill() const;
  const OptimizerOptions& options() const { return options_; }

  /// Running products β^t and the step count, for checkpoints (exact).
  Json scalars() const;
  void set_scalars(const Json& json, const std::string& origin);

 private:
  bool is_mine(size_t i) const { return owners_[i] == replicas().rank(); }
  const dist::Group& replicas() const { return ranks_.replicas; }
  /// Of all stages, in the order of names.
  struct SquaredNorm {
    std::string name;
    double square;
  };
  std::vector<SquaredNorm> squared_grad_norms(const ExecContext& ctx) const;
  void share_embedding();

  OptimizerOptions options_;
  RankGroups ranks_;
  Parameter* embedding_ = nullptr;      // of the first stage, and the copy of the last
  std::vector<Parameter*> parameters_;  // trained, sorted by name
  std::vector<int> owners_;             // by parameter: the member that keeps its moments
  std::vector<AdamMoments> moments_;    // likewise
  int64_t num_steps_ = 0;
  float beta1_power_ = 1.0f, beta2_power_ = 1.0f;  // β^t
};

}  // namespace fathom
