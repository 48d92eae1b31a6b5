#include "fathom/model/batch.h"

#include <algorithm>

namespace fathom {
namespace {

int32_t* row(std::vector<int32_t>* rows, int64_t position, int64_t layer, int64_t num_layers,
             int64_t width) {
  const size_t needed = static_cast<size_t>((position + 1) * num_layers * width);
  if (rows->size() < needed) rows->resize(needed, -1);
  return rows->data() + (position * num_layers + layer) * width;
}

const int32_t* row(const std::vector<int32_t>& rows, int64_t position, int64_t layer,
                   int64_t num_layers, int64_t width) {
  const int64_t begin = (position * num_layers + layer) * width;
  if (begin + width > static_cast<int64_t>(rows.size())) return nullptr;
  return rows[static_cast<size_t>(begin)] < 0 ? nullptr : rows.data() + begin;
}

}  // namespace

int32_t* ReplayRecord::route_row(int64_t position, int64_t layer) {
  return row(&routes, position, layer, num_layers, num_slots);
}
int32_t* ReplayRecord::pick_row(int64_t position, int64_t indexer_layer) {
  return row(&picks, position, indexer_layer, num_indexer_layers, index_topk);
}
const int32_t* ReplayRecord::route_row(int64_t position, int64_t layer) const {
  return row(routes, position, layer, num_layers, num_slots);
}
const int32_t* ReplayRecord::pick_row(int64_t position, int64_t indexer_layer) const {
  return row(picks, position, indexer_layer, num_indexer_layers, index_topk);
}

void ReplayRecord::truncate(int64_t num_positions) {
  const auto cut = [&](std::vector<int32_t>* rows, int64_t width) {
    const size_t size = static_cast<size_t>(num_positions * width);
    if (rows->size() > size) rows->resize(size);
  };
  cut(&routes, num_layers * num_slots);
  cut(&picks, num_indexer_layers * index_topk);
}

}  // namespace fathom
