// How Megatron lays a model out over ranks, and what that means for a stored tensor: which rank
// writes which part of it.
//
// Ranks of a pipeline stage are numbered from 0; rank r of stage s is global rank
// s * ranks_per_stage() + r. Outside the experts r = tensor rank + TP * replica; for routed experts
// r = expert tensor rank + ETP * (expert rank + EP * replica).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fathom/model/config.h"

namespace fathom {

struct ParallelLayout {
  int64_t tensor = 1, pipeline = 1, expert = 1, expert_tensor = 1;
  std::optional<int64_t> first_layers, last_layers;  // of the first and last stage; unset: even
  int64_t vocab_multiple = 128;  // the padded vocabulary is a multiple of this times `tensor`

  bool operator==(const ParallelLayout&) const = default;
  /// The fewest ranks that hold TP and EP x ETP groups.
  int64_t ranks_per_stage() const;
  int64_t num_ranks() const { return ranks_per_stage() * pipeline; }
  /// "TP 8, PP 8 (7 first, 6 last), EP 32"
  std::string to_string() const;
};

/// What keeps the model from being laid out so; empty when nothing does.
std::string layout_problem(const ParallelLayout& layout, const ModelConfig& config);

/// The layout with which each pipeline stage gets layers: stage of every layer.
std::vector<int64_t> stage_of_layers(const ParallelLayout& layout, int64_t num_layers);

/// The stage of a tensor by its official name: embed on the first one; head, norm, hc_head and MTP
/// on the last.
int64_t stage_of(const std::string& official, const std::vector<int64_t>& stage_of_layer);

/// A part of an official tensor that is stored as one box.
struct TensorPart {
  int64_t shard = 0;  // tensor parallel rank, of the expert group for routed experts
  int64_t row_begin = 0, row_end = 0, col_begin = 0, col_end = 0;
};

/// The dimension of the official tensor that tensor parallelism cuts; null: none, rank 0 has it.
std::optional<int> tensor_parallel_axis(const std::string& official);

/// Cuts a tensor as the layout wants it. Tensors of `split_from_bytes` and more outside the experts
/// are cut into eight at least (where that goes evenly), so that a loader of up to eight ranks
/// reads what it needs and no more.
/// @param shape of the official tensor. A vector counts as rows of one column.
/// @param num_bytes of it as it is stored.
std::vector<TensorPart> cut_tensor(const ParallelLayout& layout, const std::string& official,
                                   const std::vector<int64_t>& shape, int64_t num_bytes,
                                   int64_t split_from_bytes);

}  // namespace fathom
