// Scores of compressed entries and the exact top-k of each query (ratio-4 layers).
//   I[t,w] = Σ_h a[t,h] · ReLU(q[t,h] · k[w]): dot in row_ops order, fma chain over heads upwards.
// The index_topk largest are picked: higher score first, −0 equals +0, then the lower index; a
// query that sees no more than index_topk entries takes them all, unscored. Picks are sorted
// ascending.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/sparse_attention/sparse_attention.h"  // KeyPages

namespace fathom {

struct IndexerTopk {
  const float* q;                 // [T, Hi, di]
  const float* weights;           // [T, Hi], scaled
  const KeyPages* segment_pages;  // [num_segments], entries of width di
  const int32_t* segment_of;      // [T]
  const int32_t* num_visible;     // [T] entries 0 .. num_visible−1 may be picked
  int64_t T, Hi, di, topk;
  int64_t max_visible;  // no num_visible is larger
  int32_t* picks;       // [T, topk] ascending, −1 beyond num_picks
  int32_t* num_picks;   // [T] = min(topk, num_visible)
};
/// Errors: UserError when a score is NaN.
void indexer_topk(const ExecContext& ctx, const IndexerTopk& p);

/// Picks of one query from its scores (exposed for tests): scores [n] -> picks [min(topk, n)].
void select_topk(const float* scores, int64_t n, int64_t topk, int32_t* picks);

}  // namespace fathom
