// Samples -> packed batches: which rows predict which response tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/model/batch.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

/// A token sequence and the half-open range of its tokens that are predicted.
struct PackedSequence {
  const std::vector<int32_t>* tokens;
  int64_t target_begin;  // first predicted token, >= 1
  const ReplayRecord* replay = nullptr;
};

struct PackedBatch {
  Batch batch;                   // every sequence without its last token, which feeds no prediction
  std::vector<int64_t> rows;     // [R] rows whose prediction is asked for
  std::vector<int32_t> targets;  // [R]
  std::vector<int64_t> row_begin;  // [sequences + 1] range of each sequence in rows
};

/// Errors: UserError when a sequence has fewer than two tokens or no predicted token.
PackedBatch pack_sequences(const std::vector<PackedSequence>& sequences);

/// Cuts [0, lengths.size()) into consecutive ranges of at most max_tokens tokens (a longer item
/// alone).
/// @return range borders, first 0, last lengths.size().
std::vector<int64_t> cut_micro_batches(const std::vector<int64_t>& lengths, int64_t max_tokens);

/// Samples [begin, end).
struct SampleRange {
  size_t begin, end;
};

/// The micro-batches that this rank computes of its share of the samples, in order. Where ranks that
/// share the samples hold experts for each other, all get equally many, the last ones empty.
/// @param lengths of all samples.
std::vector<SampleRange> own_micro_batches(const RankGroups& groups,
                                           const std::vector<int64_t>& lengths, int64_t max_tokens);

}  // namespace fathom
