// Routed experts and indexer picks on their way from the kernels to the segments' replay records:
// kept where they were computed until the forward has asked for all its work.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/model/batch.h"
#include "fathom/model/batch_plan.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

class ChoiceLog {
 public:
  void add_routes(int64_t layer, Tensor topk_idx) { routes_.push_back({layer, topk_idx}); }
  void add_picks(int64_t indexer_layer, Tensor picks) { picks_.push_back({indexer_layer, picks}); }

  /// Writes all rows, also those of the other ranks of cp, to the records of segments that have
  /// one. Waits for the device.
  void write(const Batch& batch, const BatchPlan& plan) const;

 private:
  struct Entry {
    int64_t layer;
    Tensor rows;  // [context rows, width] int32
  };
  std::vector<Entry> routes_, picks_;
};

/// Which layer a block is, for states and replay records.
struct LayerId {
  int64_t state_layer = 0;       // index into SequenceState (L + i for MTP module i)
  int64_t route_layer = -1;      // row in ReplayRecord::routes; -1: not recorded
  int64_t indexer_layer = -1;    // row in ReplayRecord::picks
  ChoiceLog* choices = nullptr;  // null: nothing is recorded
};

}  // namespace fathom
