// Forward, loss and backward of one optimizer step's samples, over packed micro-batches.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/data/sample.h"
#include "fathom/model/forward.h"
#include "fathom/parallel/rank_groups.h"
#include "fathom/train/balance.h"
#include "fathom/train/policy_loss.h"

namespace fathom {

struct TrainSample {
  const Sample* sample;  // not owned
  double advantage = 0.0;
};

struct PolicyStepOptions {
  PolicyLossOptions loss;
  double temperature = 1.0;  // logits are divided by it, as in rollout
  MicroBatchCut micro_batches;
  bool balance_samples = false;  // ranks get equal numbers of tokens, not runs of neighbours
  bool observe_entropy = false;  // compute the entropy although its coefficient is 0
  bool replay_routes = false;    // use the experts that rollout chose (R3)
};

/// Adds the gradient of the step's loss to the parameters' buffers. Micro-batches are cut in sample
/// order; where they are cut changes no bits.
/// @param samples in sample order, with their advantages
/// @param num_step_samples N, the loss's normaliser: all samples of the step, also those not given
///        here because their advantage is zero
/// @param groups all ranks were given the same samples: each runs its share (deal_samples) in
/// sample
///        order and adds that share's gradient
/// @return sums over the given samples in their order (PolicyMetrics), the same bits for any layout
///         and any cut; old log-probs are the rollout's.
/// Errors: UserError when a sample has no rollout log-probs or no response.
PolicyMetrics policy_forward_backward(const ExecContext& ctx, Weights& weights,
                                      const std::vector<TrainSample>& samples,
                                      double num_step_samples, const PolicyStepOptions& options,
                                      const RankGroups& groups = {});

/// Forward only: log-probs of the response tokens of each sample at the temperature, as the trainer
/// computes them. For the metric of a step without gradients and for checks. The ranks of all
/// stages call it with the same samples, and all get the result.
std::vector<std::vector<float>> score_samples(const ExecContext& ctx, const Weights& weights,
                                              const std::vector<const Sample*>& samples,
                                              double temperature, const RankGroups& groups = {});

}  // namespace fathom
