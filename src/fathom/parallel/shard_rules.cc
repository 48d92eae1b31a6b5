#include "fathom/parallel/shard_rules.h"

#include <algorithm>
#include <string_view>

#include "fathom/base/error.h"
#include "fathom/kernels/linear/linear.h"      // num_row_parallel_parts
#include "fathom/kernels/log_prob/log_prob.h"  // vocab_chunk_size

namespace fathom {
namespace {

constexpr int64_t kFp8Block = 128;
constexpr int64_t kPlainBlock = 16;

/// "layers.3.attn.wq_b.weight" taken apart.
struct Name {
  enum class Place { kEmbed, kTail, kLayer, kMtp };
  Place place = Place::kTail;
  int64_t layer = -1;       // of kLayer
  std::string_view module;  // behind "layers.3."
  int64_t expert = -1;      // of a routed expert
  std::string_view leaf;    // of a routed expert: "w1.weight"
};

/// Reads "12." at the front of text and takes it off; -1 when there is no number.
int64_t take_number(std::string_view* text) {
  int64_t n = -1;
  size_t used = 0;
  while (used < text->size() && (*text)[used] >= '0' && (*text)[used] <= '9') {
    n = std::max<int64_t>(n, 0) * 10 + ((*text)[used] - '0');
    ++used;
  }
  if (n < 0 || used == text->size() || (*text)[used] != '.') return -1;
  text->remove_prefix(used + 1);
  return n;
}

bool take_prefix(std::string_view* text, std::string_view prefix) {
  if (!text->starts_with(prefix)) return false;
  text->remove_prefix(prefix.size());
  return true;
}

Name take_apart(const std::string& name) {
  Name out;
  std::string_view rest = name;
  if (rest == "embed.weight") {
    out.place = Name::Place::kEmbed;
  } else if (take_prefix(&rest, "layers.")) {
    out.place = Name::Place::kLayer;
    out.layer = take_number(&rest);
    FATHOM_ASSERT(out.layer >= 0, "no parameter is called ", name);
  } else if (take_prefix(&rest, "mtp.")) {
    out.place = Name::Place::kMtp;
    FATHOM_ASSERT(take_number(&rest) >= 0, "no parameter is called ", name);
  } else {
    FATHOM_ASSERT(rest == "norm.weight" || rest == "head.weight" || rest.starts_with("hc_head_"),
                  "no parameter is called ", name);
  }
  out.module = rest;
  if (take_prefix(&rest, "ffn.experts.")) {
    out.expert = take_number(&rest);
    FATHOM_ASSERT(out.expert >= 0, "no parameter is called ", name);
    out.leaf = rest;
  }
  return out;
}

bool fp8(const ShardLayout& layout) { return layout.precision == Precision::kParityFp8; }

bool divides_parts(const ShardLayout& layout, int degree, int64_t columns) {
  return num_parts(layout, columns) % degree == 0;
}

/// Rows of one head-parallel shard of wq_b may be cut there.
bool cuts_no_block(const ModelConfig& c, const ShardLayout& layout) {
  const int64_t rows = c.num_attention_heads / layout.mesh.tp * c.head_dim;
  return !fp8(layout) || rows % kFp8Block == 0;
}

int64_t num_vocabulary_chunks(const ModelConfig& c) {
  // The count, with the empty ones: vocab_chunk_size divides the padded vocabulary by it.
  constexpr int64_t kSpan = 8 * 3232;
  return 8 * ((c.vocab_size + kSpan - 1) / kSpan);
}

Split split_of(const ModelConfig& c, const ShardLayout& layout, const Name& name) {
  const int tp = layout.mesh.tp, etp = layout.mesh.etp;
  if (name.expert >= 0) {
    if (etp == 1 || !divides_parts(layout, etp, c.moe_intermediate_size)) return Split::kExpert;
    return name.leaf.starts_with("w2.") ? Split::kExpertColumns : Split::kExpertRows;
  }
  if (tp == 1) return Split::kWhole;
  if (name.place == Name::Place::kEmbed || name.module == "head.weight") {
    return num_vocabulary_chunks(c) % tp == 0 ? Split::kVocabularyTp : Split::kWhole;
  }
  if (name.place == Name::Place::kTail) return Split::kWhole;
  const std::string_view m = name.module;
  if (m == "attn.wq_b.weight") return cuts_no_block(c, layout) ? Split::kRowsTp : Split::kWhole;
  if (m == "attn.attn_sink" || m == "attn.wo_a.weight") return Split::kRowsTp;
  if (m == "attn.wo_b.weight") {
    return divides_parts(layout, tp, c.o_groups * c.o_lora_rank) ? Split::kColumnsTp
                                                                 : Split::kWhole;
  }
  if (m.starts_with("ffn.shared_experts.")) {
    if (!divides_parts(layout, tp, c.moe_intermediate_size)) return Split::kWhole;
    return m.ends_with(".w2.weight") ? Split::kColumnsTp : Split::kRowsTp;
  }
  return Split::kWhole;
}

int stage_of(const ModelConfig& c, const ShardLayout& layout, const Name& name) {
  if (name.place == Name::Place::kEmbed) return 0;
  if (name.place != Name::Place::kLayer) return layout.mesh.pp - 1;
  const std::vector<LayerRange> stages =
      stage_layers(c, layout.mesh.pp, layout.first_stage_layers, layout.last_stage_layers);
  for (size_t s = 0; s < stages.size(); ++s) {
    if (stages[s].contains(name.layer)) return static_cast<int>(s);
  }
  FATHOM_ASSERT(false, "the model has no layer ", name.layer);
}

void set_range(Shard* shard, int axis, int64_t size, int index, int degree) {
  FATHOM_ASSERT(size % degree == 0, "axis ", axis, " of ", size, " over ", degree);
  shard->axis = axis;
  shard->begin = size / degree * index;
  shard->end = size / degree * (index + 1);
}

}  // namespace

std::vector<int64_t> Shard::shape(std::vector<int64_t> shape) const {
  if (!whole()) shape[static_cast<size_t>(axis)] = end - begin;
  return shape;
}

int64_t Shard::numel(const std::vector<int64_t>& whole_shape) const {
  int64_t n = held ? 1 : 0;
  for (int64_t d : shape(whole_shape)) n *= d;
  return n;
}

int num_parts(const ShardLayout& layout, int64_t columns) {
  return num_row_parallel_parts(columns, fp8(layout) ? kFp8Block : kPlainBlock);
}

LayerRange local_experts(const ModelConfig& config, const ShardLayout& layout, int ep_index) {
  const int64_t n = config.n_routed_experts / layout.mesh.ep;
  return {n * ep_index, n * (ep_index + 1)};
}

VocabularyShard vocabulary_shard(const ModelConfig& config, const ShardLayout& layout,
                                 int tp_index) {
  const int64_t chunks = num_vocabulary_chunks(config), width = vocab_chunk_size(config.vocab_size);
  VocabularyShard out{0, chunks, 0, config.vocab_size};
  if (chunks % layout.mesh.tp != 0) return out;
  const int64_t each = chunks / layout.mesh.tp;
  out.first_chunk = each * tp_index;
  out.end_chunk = out.first_chunk + each;
  out.begin = std::min(config.vocab_size, out.first_chunk * width);
  out.end = std::min(config.vocab_size, out.end_chunk * width);
  return out;
}

void check_layout(const ModelConfig& c, const ShardLayout& layout) {
  const dist::MeshShape& mesh = layout.mesh;
  std::string problems;
  const auto must_divide = [&](const char* option, int size, int64_t n, const char* what) {
    if (n % size == 0) return;
    problems += str_cat("\n  - ", option, " ", size, " does not divide the ", n, " ", what);
  };
  must_divide("--tensor-model-parallel-size", mesh.tp, c.num_attention_heads, "attention heads");
  must_divide("--tensor-model-parallel-size", mesh.tp, c.o_groups, "output groups");
  must_divide("--expert-model-parallel-size", mesh.ep, c.n_routed_experts, "routed experts");
  if (!problems.empty()) {
    throw ConfigError(str_cat("the layout ", mesh.text(), " does not fit the model:", problems,
                              "\n  fix: choose sizes that divide these numbers"));
  }
  stage_layers(c, mesh.pp, layout.first_stage_layers, layout.last_stage_layers);
}

Split split_of(const ModelConfig& config, const ShardLayout& layout, const std::string& name) {
  return split_of(config, layout, take_apart(name));
}

int stage_of(const ModelConfig& config, const ShardLayout& layout, const std::string& name) {
  return stage_of(config, layout, take_apart(name));
}

Shard shard_of(const ModelConfig& config, const ShardLayout& layout, int rank,
               const std::string& full_name, const std::vector<int64_t>& shape) {
  FATHOM_ASSERT(!shape.empty(), full_name);
  const dist::MeshShape& size = layout.mesh;
  const dist::Mesh mesh(size.size(), size.tp, size.cp, size.ep, size.etp, size.pp);
  const auto at = [&](dist::Axis axis) { return mesh.index(rank, axis); };
  const Name name = take_apart(full_name);
  const int stage = at(dist::Axis::kPp), home = stage_of(config, layout, name);
  Shard shard;
  shard.end = shape[0];
  if (stage != home) {
    shard.is_copy = name.place == Name::Place::kEmbed && stage == size.pp - 1 && layout.with_mtp &&
                    config.num_nextn_predict_layers > 0;
    if (!shard.is_copy) return shard;
  }
  const Split split = split_of(config, layout, name);
  if (name.expert >= 0 &&
      !local_experts(config, layout, at(dist::Axis::kEp)).contains(name.expert)) {
    return shard;
  }
  shard.held = true;
  // Ranks that differ on these axes alone hold the same.
  const int tp = at(dist::Axis::kTp), etp = at(dist::Axis::kEtp);
  if (name.expert >= 0) {
    shard.replica = at(dist::Axis::kExpertDp);
    shard.num_replicas = size.expert_dp();
  } else {
    shard.replica = at(dist::Axis::kDpCp);
    shard.num_replicas = size.dp * size.cp;
  }
  switch (split) {
    case Split::kWhole:
      shard.replica = shard.replica * size.tp + tp;
      shard.num_replicas *= size.tp;
      break;
    case Split::kRowsTp:
      set_range(&shard, 0, shape[0], tp, size.tp);
      break;
    case Split::kColumnsTp:
      set_range(&shard, 1, shape.at(1), tp, size.tp);
      break;
    case Split::kVocabularyTp: {
      const VocabularyShard rows = vocabulary_shard(config, layout, tp);
      shard.axis = 0;
      shard.begin = rows.begin;
      shard.end = rows.end;
      break;
    }
    case Split::kExpert:
      shard.replica = shard.replica * size.etp + etp;
      shard.num_replicas *= size.etp;
      break;
    case Split::kExpertRows:
      set_range(&shard, 0, shape[0], etp, size.etp);
      break;
    case Split::kExpertColumns:
      set_range(&shard, 1, shape.at(1), etp, size.etp);
      break;
  }
  if (shard.is_copy) ++shard.replica;  // replica 0 is on the first stage
  return shard;
}

std::vector<std::string> whole_products(const ModelConfig& c, const ShardLayout& layout) {
  std::vector<std::string> lines;
  const int tp = layout.mesh.tp, etp = layout.mesh.etp;
  const auto row_parallel = [&](const char* what, const char* axis, int degree, int64_t columns) {
    if (divides_parts(layout, degree, columns)) return;
    const int parts = num_parts(layout, columns);
    lines.push_back(str_cat(what, ": ", axis, " ", degree, " does not divide its ", parts,
                            parts == 1 ? " part of " : " parts of ", columns / parts, " columns"));
  };
  row_parallel("attn.wo_b", "tp", tp, c.o_groups * c.o_lora_rank);
  row_parallel("shared_experts.w1, w2, w3", "tp", tp, c.moe_intermediate_size);
  row_parallel("experts.w1, w2, w3", "etp", etp, c.moe_intermediate_size);
  if (!cuts_no_block(c, layout)) {
    lines.push_back(str_cat("attn.wq_b: tp ", tp, " would cut FP8 blocks of ", kFp8Block,
                            " rows into ", c.num_attention_heads / tp * c.head_dim));
  }
  if (num_vocabulary_chunks(c) % tp != 0) {
    lines.push_back(str_cat("embed, head: tp ", tp, " does not divide the ",
                            num_vocabulary_chunks(c), " chunks of the vocabulary"));
  }
  return lines;
}

}  // namespace fathom
