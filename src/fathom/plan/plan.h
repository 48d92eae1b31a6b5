// `fathom plan`: memory, messages and time of a model on a layout on a kind of machine.
#pragma once

#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/plan/memory.h"
#include "fathom/plan/request.h"
#include "fathom/plan/traffic.h"

namespace fathom {

/// A change of one setting, and what the fullest rank would then take.
struct Advice {
  std::string change;
  int64_t peak_bytes = 0, host_bytes = 0;
  bool fits = false;
};

struct Plan {
  std::vector<RankMemory> ranks;
  std::vector<LayerRange> stages;
  /// Bytes that one rank of each stage sends in a step, by kind. [stage][kind]
  std::vector<std::vector<int64_t>> traffic;
  std::vector<std::string> whole_products;  // parallel/shard_rules.h
  double compute_seconds = 0;               // of a training step, on the slowest stage
  double bubble_seconds = 0;                // in which it waits for the pipeline
  double message_seconds = 0;               // if nothing is hidden behind the computing
  double optimizer_seconds = 0;
  bool fits = false;
  std::vector<Advice> advice;  // where it does not fit

  const RankMemory& fullest() const;  // the first rank with the highest peak
  int64_t max_host_bytes() const;
  double step_seconds() const;
};

/// Errors: ConfigError when the layout does not fit the model.
Plan make_plan(const PlanRequest& request);

std::string plan_table(const PlanRequest& request, const Plan& plan);
/// All sizes in bytes, every rank.
Json plan_json(const PlanRequest& request, const Plan& plan);

}  // namespace fathom
