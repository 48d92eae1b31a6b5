// Which part of which parameter a rank holds.
//
// Pure functions of the model, the layout and the parameter's name: trainer, engine, checkpoints
// and `fathom plan` ask the same ones. A parameter is held whole, or as one consecutive range of
// one axis of the shape that it has in files:
//
//   tensor parallel   wq_b rows and attn_sink by heads; wo_a rows by groups; wo_b columns; shared
//                     expert w1, w3 rows and w2 columns
//   vocabulary        embed.weight and head.weight rows, by whole chunks of the log-softmax
//   expert parallel   experts.X.* belong to one rank of the axis, in runs of n_routed_experts / ep;
//                     of these, expert tensor parallel: w1, w3 rows and w2 columns
//   pipeline          layers by parallel/stages.h; embed on the first stage; norm, hc_head_*, head
//                     and mtp.* on the last, which also has a copy of embed for its MTP modules
//   everything else   whole on every rank of its stage (wq_a, wkv, norms, compressors, indexer,
//                     hc_*, gate, tid2eid)
//
// Where a range would change bits the parameter is held whole, and the product is computed by every
// rank: columns when the degree does not divide the parts of the row-parallel product
// (docs/numerics.md), the vocabulary when it does not divide the chunks, FP8 rows when a block of
// 128 rows would be cut. `whole_products` lists these.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fathom/base/precision.h"
#include "fathom/dist/mesh.h"
#include "fathom/model/config.h"
#include "fathom/parallel/stages.h"

namespace fathom {

struct ShardLayout {
  dist::MeshShape mesh;
  std::optional<int64_t> first_stage_layers, last_stage_layers;
  Precision precision = Precision::kFp32;  // decides the parts of row-parallel products
  bool with_mtp = true;                    // the model is made with its MTP modules
};

/// How a parameter is divided, whatever the rank.
enum class Split {
  kWhole,          // every rank of the stage has all of it
  kRowsTp,         // axis 0 over tp
  kColumnsTp,      // axis 1 over tp
  kVocabularyTp,   // axis 0 over tp in whole chunks; some ranks may have none
  kExpert,         // whole, on one rank of ep
  kExpertRows,     // the same, axis 0 over etp
  kExpertColumns,  // the same, axis 1 over etp
};

/// What one rank holds of one parameter.
struct Shard {
  bool held = false;           // false: it belongs to another stage or another rank of ep
  int axis = -1;               // -1: whole
  int64_t begin = 0, end = 0;  // on `axis`; whole: all of axis 0
  /// Ranks that hold exactly this part are its replicas, counted as tp, cp, dp (experts: etp,
  /// expert-dp) grow. Replica 0 writes it to checkpoints and counts it in norms: over all ranks the
  /// replicas 0 tile every parameter exactly once.
  int replica = 0, num_replicas = 1;
  /// The last stage's embedding: read by MTP, without gradient and optimizer state, never replica
  /// 0, not counted in num_replicas.
  bool is_copy = false;

  bool whole() const { return axis < 0; }
  /// The shape that is held, for a parameter of `shape`.
  std::vector<int64_t> shape(std::vector<int64_t> shape) const;
  /// Elements held; 0 where held is false.
  int64_t numel(const std::vector<int64_t>& shape) const;
};

/// Checks a layout against a model. Errors: ConfigError that lists everything that does not divide:
/// tp into heads and groups, ep into the routed experts, pp into the layers.
void check_layout(const ModelConfig& config, const ShardLayout& layout);

/// How the parameter of this name is divided under the layout (sizes of 1 make it kWhole, or
/// kExpert). Errors: InternalError for a name that no model has.
Split split_of(const ModelConfig& config, const ShardLayout& layout, const std::string& name);

/// What `rank` holds of the parameter. The layout has passed check_layout.
/// @param shape as in files, of the whole parameter.
Shard shard_of(const ModelConfig& config, const ShardLayout& layout, int rank,
               const std::string& name, const std::vector<int64_t>& shape);

/// The stage of a parameter; for embed.weight the first.
int stage_of(const ModelConfig& config, const ShardLayout& layout, const std::string& name);

/// Routed experts of one rank of ep: [index * n / ep, (index + 1) * n / ep).
LayerRange local_experts(const ModelConfig& config, const ShardLayout& layout, int ep_index);

/// Chunks of the vocabulary of one rank of tp, and the rows that they are. All chunks and rows
/// where tp does not divide their number.
struct VocabularyShard {
  int64_t first_chunk = 0, end_chunk = 0;
  int64_t begin = 0, end = 0;  // rows; empty where all of the chunks lie behind the vocabulary
};
VocabularyShard vocabulary_shard(const ModelConfig& config, const ShardLayout& layout,
                                 int tp_index);

/// A row-parallel product's parts: of `columns` under the layout's precision.
int num_parts(const ShardLayout& layout, int64_t columns);

/// One line for each product that the layout's ranks compute in full although their axis is larger
/// than 1, and why: "wo_b: tp 8 does not divide its 2 parts of 64 columns".
std::vector<std::string> whole_products(const ModelConfig& config, const ShardLayout& layout);

}  // namespace fathom
