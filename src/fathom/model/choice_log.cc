#include "fathom/model/choice_log.h"

#include <cstring>

namespace fathom {

void ChoiceLog::write(const Batch& batch, const BatchPlan& plan) const {
  const dist::Group& cp = plan.layout->cp;
  const auto for_each_row = [&](const Entry& entry, auto&& row_of) {
    const int64_t width = entry.rows.dim(1);
    const Tensor mine = entry.rows.to_host();
    const std::vector<int32_t> all =
        cp.size() == 1
            ? std::vector<int32_t>()
            : cp.concatenate(std::vector<int32_t>(mine.i32(), mine.i32() + mine.numel()));
    const int32_t* rows = cp.size() == 1 ? mine.i32() : all.data();
    for (int64_t t = 0; t < plan.T; ++t) {
      ReplayRecord* record = batch.segments[static_cast<size_t>(plan.segment_of[t])].replay_out;
      if (record == nullptr) continue;
      int32_t* row = row_of(record, plan.positions[t], entry.layer);
      if (row == nullptr) continue;
      std::memcpy(row, rows + t * width, static_cast<size_t>(width) * sizeof(int32_t));
    }
  };
  for (const Entry& entry : routes_) {
    for_each_row(entry, [](ReplayRecord* r, int64_t position, int64_t layer) {
      return r->route_row(position, layer);
    });
  }
  for (const Entry& entry : picks_) {
    for_each_row(entry, [](ReplayRecord* r, int64_t position, int64_t layer) {
      return r->num_indexer_layers == 0 ? nullptr : r->pick_row(position, layer);
    });
  }
}

}  // namespace fathom
