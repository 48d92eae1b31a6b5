// Samples over ranks and into micro-batches, evenly by tokens.
//
// A rank computes its samples in sample order, whatever the cut: a gradient's chain of additions
// runs over the tokens in that order, so where it is cut into micro-batches changes no bits
// (docs/numerics.md). Which samples a rank has does change them, within the documented bound.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "fathom/parallel/rank_groups.h"

namespace fathom {

/// Divides items among `num_bins` bins so that sums of weights differ little and counts by at most
/// one: Karmarkar and Karp's differencing. Items sorted by weight form tuples of one item per bin;
/// again and again the two partial divisions with the largest spread are joined, largest bin with
/// smallest. Items that do not fill a tuple are joined by ones of weight 0 that stand for none.
/// @param weights >= 0
/// @return the items of each bin, ascending. The same for the same weights, everywhere.
std::vector<std::vector<int64_t>> karmarkar_karp(const std::vector<int64_t>& weights, int num_bins);

/// The samples of each of `num_ranks` data-parallel ranks, ascending.
/// @param balanced by karmarkar_karp(); else consecutive runs of about equal length
///        (parallel/data_parallel.h: share_of)
std::vector<std::vector<int64_t>> deal_samples(const std::vector<int64_t>& lengths, int num_ranks,
                                               bool balanced);

/// How a rank's samples are cut into micro-batches.
struct MicroBatchCut {
  int64_t max_tokens = 8192;  // a longer sample is a micro-batch of its own
  int64_t num_samples = 0;    // so many samples in each, whatever their tokens; 0: by tokens
  bool even = false;          // as few as max_tokens allows, but the fullest as empty as can be
};

/// @return borders of consecutive ranges: first 0, last lengths.size().
std::vector<int64_t> cut_samples(const std::vector<int64_t>& lengths, const MicroBatchCut& cut);

/// Samples [begin, end).
struct SampleRange {
  size_t begin, end;
};

/// The micro-batches that this rank computes, as ranges of its share, in order. Where ranks that
/// share the samples hold experts for each other, all get equally many, the last ones empty.
/// @param shares of deal_samples(). @param lengths of all samples.
std::vector<SampleRange> cut_share(const RankGroups& groups,
                                   const std::vector<std::vector<int64_t>>& shares,
                                   const std::vector<int64_t>& lengths, const MicroBatchCut& cut);

/// The same where shares are runs of neighbours, as ranges of all samples.
std::vector<SampleRange> own_micro_batches(const RankGroups& groups,
                                           const std::vector<int64_t>& lengths, int64_t max_tokens);

}  // namespace fathom
