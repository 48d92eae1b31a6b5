// The equations of indexer.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// Scores of one query: q [Hi, di], weights [Hi], keys [n, di] -> [n].
std::vector<double> indexer_scores_ref(int64_t Hi, int64_t di, const std::vector<double>& q,
                                       const std::vector<double>& weights,
                                       const std::vector<double>& keys);

/// Indices of the `topk` largest scores, the lower index first among equals, ascending.
std::vector<int32_t> select_topk_ref(const std::vector<double>& scores, int64_t topk);

}  // namespace fathom
