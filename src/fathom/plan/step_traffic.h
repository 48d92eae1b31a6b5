// What a rank sends in a whole training step: how often each message of traffic.h, and what the
// optimizer sends at its end.
#pragma once

#include <utility>
#include <vector>

#include "fathom/plan/request.h"
#include "fathom/plan/shard_table.h"
#include "fathom/plan/traffic.h"

namespace fathom {

/// The rank of a stage that is first on all other axes.
int first_rank_of_stage(const PlanRequest& request, int stage);

/// At the end of a step: gradients to the ranks that keep their state, and the weights back. Of
/// this rank's own shards.
std::vector<CommOp> optimizer_ops(const PlanRequest& request, const ShardTable& table, int rank);

/// All that a rank sends in a step, pipeline messages included, with how often.
std::vector<std::pair<CommOp, int64_t>> step_ops(const PlanRequest& request,
                                                 const ShardTable& table, int rank);

}  // namespace fathom
