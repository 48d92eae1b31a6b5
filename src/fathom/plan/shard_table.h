// Every parameter of a model under a layout: what each rank holds of it. No memory is taken for
// values.
#pragma once

#include <vector>

#include "fathom/model/weights.h"
#include "fathom/parallel/shard_rules.h"
#include "fathom/plan/request.h"

namespace fathom {

struct HeldParameter {
  const Parameter* parameter = nullptr;
  Shard shard;
  int64_t numel = 0;
  int64_t stored = 0;  // elements with the padding of panels (of the CPU)
  bool is_trained = false;
  bool is_expert = false;
};

class ShardTable {
 public:
  /// `request` must outlive the table. Errors: ConfigError as check_layout.
  explicit ShardTable(const PlanRequest& request);

  /// In the order of names.
  std::vector<HeldParameter> of_rank(int rank) const;
  const dist::Mesh& mesh() const { return mesh_; }
  const std::vector<LayerRange>& stages() const { return stages_; }
  const Weights& weights() const { return weights_; }

 private:
  bool is_trained(const Parameter& p) const;
  const PlanRequest& request_;
  dist::Mesh mesh_;
  std::vector<LayerRange> stages_;
  Weights weights_;
  std::vector<std::vector<const Parameter*>> of_stage_;
};

/// The first of `members` whose load is least takes the next, in the order given: who keeps which
/// parameter's optimizer state (parallel/data_parallel.h deals the same way).
class Dealer {
 public:
  explicit Dealer(int members) : load_(static_cast<size_t>(members)) {}
  int next(int64_t numel);

 private:
  std::vector<int64_t> load_;
};

}  // namespace fathom
