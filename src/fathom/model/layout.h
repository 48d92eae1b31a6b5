// How one model is split over the ranks that compute it together, as one of them sees it. One rank
// that has everything is the default, and every function of the model works for it unchanged.
//
// All ranks name the same packed batch. Its rows are divided into consecutive ranges: over `cp`
// (whose queries a rank's attention computes), and with sequence parallelism each of these over
// `tp` again (whose streams a rank holds, from embedding to head). Without sequence parallelism the
// ranks of `tp` hold the same rows.
#pragma once

#include <cstdint>

#include "fathom/dist/group.h"

namespace fathom {

/// Consecutive rows of a packed batch.
struct RowRange {
  int64_t begin = 0, count = 0;
  int64_t end() const { return begin + count; }
  bool operator==(const RowRange&) const = default;
};

/// Part `index` of `parts` consecutive ranges whose lengths differ by one at most, longer ones
/// first.
RowRange share_of_rows(RowRange rows, int index, int parts);

struct Layout {
  dist::Group tp;       // share heads, output groups, the shared expert and the vocabulary
  dist::Group cp;       // share the rows of a batch
  dist::Group ep;       // hold different routed experts, each for the tokens of all
  dist::Group etp;      // share each routed expert
  dist::Group experts;  // all of ep and etp, etp counting first: where a token's experts lie
  bool sequence_parallel = false;
  // Pipeline stage: the layers that this rank has. The first stage embeds, the last has head and
  // mtp.
  int64_t first_layer = 0;
  int64_t num_layers = -1;  // -1: all
  bool is_first_stage = true, is_last_stage = true;
  // Parts of row-parallel products are multiples of this: 128 where a mode that the weights are
  // used in computes in FP8 blocks, which no border of a shard may cut, else 16.
  int64_t part_multiple = 16;

  /// Rows of T whose queries this rank computes.
  RowRange context_rows(int64_t T) const;
  /// Rows of T whose streams this rank holds, within context_rows().
  RowRange stream_rows(int64_t T) const;
  /// Rows of T that this rank routes to experts: its part of its context, with or without sequence
  /// parallelism. Every row of T is routed by one rank.
  RowRange routed_rows(int64_t T) const;
  /// Whether the rank's streams are all rows of the batch.
  bool has_all_streams() const { return cp.size() == 1 && (!sequence_parallel || tp.size() == 1); }
};

}  // namespace fathom
