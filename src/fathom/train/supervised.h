// Supervised training: cross-entropy on chosen tokens, with the MTP block trained beside it.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/forward.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

struct SupervisedExample {
  std::vector<int32_t> tokens;
  int64_t target_begin = 1;  // the tokens from here on are learned
};

struct SupervisedOptions {
  int64_t max_tokens_per_micro_batch = 8192;
  double mtp_loss_scaling_factor = 0.1;  // 0, or a model without MTP: not trained
};

struct SupervisedMetrics {
  double loss = 0.0;      // mean −log p over the step's learned tokens
  double mtp_loss = 0.0;  // mean −log p of the tokens after next, unscaled
  int64_t num_tokens = 0;
};

/// Adds the gradient of one step to the parameters' buffers: mean over all learned tokens of the
/// step; the MTP loss (targets t+2, streams, embedding and head detached) reaches mtp.* alone.
/// @param examples all of the step; each rank runs its share of them (own_micro_batches) and adds
/// that share's gradient. The metrics are those of the step, the same bits for any layout.
SupervisedMetrics supervised_forward_backward(const ExecContext& ctx, Weights& weights,
                                              const std::vector<SupervisedExample>& examples,
                                              const SupervisedOptions& options,
                                              const RankGroups& groups = {});

/// Fills fresh masters: matrices N(0, 1/fan_in), wo_b, w2 and head times 0.5, embedding std 0.5, hc
/// fn std 0.02, hc base, sinks, ape, gate bias 0, hc scale and norms 1, tid2eid distinct random
/// experts. The same seed gives the same bits on every machine.
void init_random_weights(Weights& weights, uint64_t seed);

}  // namespace fathom
