// Whether the trainer chooses the experts and the compressed entries that rollout chose, and where
// it first does not. With equal bits it always does; a difference names the layer to look at.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/data/sample.h"
#include "fathom/model/weights.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

struct ReplayDifference {
  int64_t sample = -1;    // Sample::index
  int64_t layer = 0;      // of the model
  int64_t token = 0;      // position
  bool in_picks = false;  // indexer picks; else routed experts
  std::vector<int32_t> rollout, trainer;
  /// "sample 3: layer 2, token 17: rollout routed to [1 5], the trainer to [1 4]"
  std::string text() const;
};

struct ReplayCheck {
  int64_t num_tokens = 0;            // that both recorded
  int64_t num_route_mismatches = 0;  // tokens with another set of experts in some layer
  int64_t num_pick_mismatches = 0;   // tokens with another set of entries in some layer
  std::optional<ReplayDifference> first;
};

/// Compares two records of one sequence in the order of computation: layer by layer, a layer's
/// picks before its routes, then by token; so `first` is where the two began to differ. The order
/// of slots counts, since it is part of the bits.
/// @param sample_index for `first`. Errors: InternalError for records of different models.
ReplayCheck compare_replay(const ModelConfig& config, const ReplayRecord& rollout,
                           const ReplayRecord& trainer, int64_t sample_index);

/// Runs the samples forward as the trainer does, in batches of at most max_tokens, records what is
/// chosen and compares it with the samples' own records.
/// `first` is that of the first sample that differs. Samples without a record are left out.
/// @param groups who compute the model together: they call it with the same samples, and all get
/// the result, whoever has the layer and the token. Errors: UserError for a record that does not
/// cover its sample.
ReplayCheck check_replay(const ExecContext& ctx, const Weights& weights,
                         const std::vector<const Sample*>& samples, int64_t max_tokens,
                         const RankGroups& groups = {});

}  // namespace fathom
