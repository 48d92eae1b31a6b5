// Samples -> packed batches: which rows predict which response tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/model/batch.h"

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

}  // namespace fathom
