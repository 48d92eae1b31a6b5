#include "fathom/train/packing.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {

PackedBatch pack_sequences(const std::vector<PackedSequence>& sequences) {
  PackedBatch packed;
  packed.row_begin.push_back(0);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& tokens = *sequences[i].tokens;
    const int64_t n = static_cast<int64_t>(tokens.size());
    const int64_t begin = sequences[i].target_begin;
    FATHOM_CHECK(n >= 2 && begin >= 1 && begin < n, "sequence ", i, ": ", n,
                 " tokens of which those from ", begin,
                 " on are predicted; needs a prompt token and a predicted token");
    const int64_t first_row = packed.batch.num_tokens();
    packed.batch.token_ids.insert(packed.batch.token_ids.end(), tokens.begin(), tokens.end() - 1);
    Segment segment;
    segment.num_tokens = n - 1;
    segment.replay_in = sequences[i].replay;
    packed.batch.segments.push_back(segment);
    for (int64_t t = begin; t < n; ++t) {
      packed.rows.push_back(first_row + t - 1);
      packed.targets.push_back(tokens[static_cast<size_t>(t)]);
    }
    packed.row_begin.push_back(static_cast<int64_t>(packed.rows.size()));
  }
  return packed;
}

std::vector<int64_t> cut_micro_batches(const std::vector<int64_t>& lengths, int64_t max_tokens) {
  std::vector<int64_t> borders = {0};
  int64_t used = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (used > 0 && used + lengths[i] > max_tokens) {
      borders.push_back(static_cast<int64_t>(i));
      used = 0;
    }
    used += lengths[i];
  }
  if (!lengths.empty()) borders.push_back(static_cast<int64_t>(lengths.size()));
  return borders;
}

}  // namespace fathom
