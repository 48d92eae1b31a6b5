// What a run says of itself: one line a step, and the curve and answers at its end.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/observe/metrics.h"
#include "fathom/rl/run_directory.h"

namespace fathom {

/// "step 12/60  reward 0.711  length 11.2  logprob diff 0  grad norm 0.93  lr 0.00016  0.8 s"
std::string step_line(int64_t rollout_id, int64_t num_rollouts, const MetricList& metrics);

/// The reward curve from metrics.jsonl, accuracy before and after on `evaluation_set` (may be
/// empty), a few answers before and after, and where to look next.
std::string run_summary(const RunDirectory& directory, const std::string& evaluation_set);

}  // namespace fathom
