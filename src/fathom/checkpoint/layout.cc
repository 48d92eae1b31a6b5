#include "fathom/checkpoint/layout.h"

#include <algorithm>
#include <numeric>

#include "fathom/base/error.h"
#include "fathom/checkpoint/names.h"

namespace fathom {
namespace {

constexpr int64_t kSplitParts = 8;

// Layers of a stage that is not told its number; negative when the rest cannot be shared evenly.
int64_t layers_of_other_stages(const ParallelLayout& layout, int64_t num_layers) {
  const int64_t told = (layout.first_layers ? 1 : 0) + (layout.last_layers ? 1 : 0);
  const int64_t rest =
      num_layers - layout.first_layers.value_or(0) - layout.last_layers.value_or(0);
  const int64_t stages = layout.pipeline - told;
  if (stages <= 0) return rest == 0 && stages == 0 ? 0 : -1;
  return rest > 0 && rest % stages == 0 ? rest / stages : -1;
}

bool is_vocab(const std::string& name) { return name == "embed.weight" || name == "head.weight"; }

bool is_routed(const std::string& name) { return parse_expert_name(name).has_value(); }

int64_t padded(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t ParallelLayout::ranks_per_stage() const { return std::lcm(tensor, expert * expert_tensor); }

std::string ParallelLayout::to_string() const {
  std::string text = str_cat("TP ", tensor, ", PP ", pipeline);
  if (first_layers || last_layers) {
    const auto show = [](const std::optional<int64_t>& n) {
      return n ? std::to_string(*n) : std::string("even");
    };
    text += str_cat(" (first ", show(first_layers), ", last ", show(last_layers), ")");
  }
  text += str_cat(", EP ", expert);
  if (expert_tensor != 1) text += str_cat(", ETP ", expert_tensor);
  return text;
}

std::string layout_problem(const ParallelLayout& layout, const ModelConfig& c) {
  if (layers_of_other_stages(layout, c.num_hidden_layers) < 0) {
    return str_cat(
        c.num_hidden_layers, " layers cannot be shared by ", layout.pipeline, " pipeline stages",
        layout.first_layers ? str_cat(" with ", *layout.first_layers, " in the first") : "",
        layout.last_layers ? str_cat(" with ", *layout.last_layers, " in the last") : "",
        " (--pipeline-model-parallel-size, --decoder-first-pipeline-num-layers, "
        "--decoder-last-pipeline-num-layers)");
  }
  const auto divides = [](int64_t part, int64_t whole) { return whole % part == 0; };
  if (!divides(layout.expert, c.n_routed_experts)) {
    return str_cat(c.n_routed_experts, " experts cannot be shared by ", layout.expert,
                   " ranks (--expert-model-parallel-size)");
  }
  if (!divides(layout.expert_tensor, c.moe_intermediate_size)) {
    return str_cat("experts of width ", c.moe_intermediate_size, " cannot be cut into ",
                   layout.expert_tensor, " parts (--expert-tensor-parallel-size)");
  }
  for (const auto& [what, size] :
       {std::pair<const char*, int64_t>{"attention heads", c.num_attention_heads},
        {"output groups", c.o_groups},
        {"rows of a shared expert", c.n_shared_experts * c.moe_intermediate_size}}) {
    if (!divides(layout.tensor, size)) {
      return str_cat(size, " ", what, " cannot be cut into ", layout.tensor,
                     " parts (--tensor-model-parallel-size)");
    }
  }
  return "";
}

std::vector<int64_t> stage_of_layers(const ParallelLayout& layout, int64_t num_layers) {
  const int64_t others = layers_of_other_stages(layout, num_layers);
  FATHOM_ASSERT(others >= 0, layout.to_string());
  std::vector<int64_t> stages;
  for (int64_t s = 0; s < layout.pipeline; ++s) {
    int64_t n = others;
    if (s == 0 && layout.first_layers) {
      n = *layout.first_layers;
    } else if (s == layout.pipeline - 1 && layout.last_layers) {
      n = *layout.last_layers;
    }
    stages.insert(stages.end(), static_cast<size_t>(n), s);
  }
  FATHOM_ASSERT(static_cast<int64_t>(stages.size()) == num_layers, layout.to_string());
  return stages;
}

int64_t stage_of(const std::string& name, const std::vector<int64_t>& stage_of_layer) {
  const int64_t last = stage_of_layer.empty() ? 0 : stage_of_layer.back();
  if (name == "embed.weight") return 0;
  constexpr std::string_view kPrefix = "layers.";
  if (!name.starts_with(kPrefix)) return last;
  return stage_of_layer.at(static_cast<size_t>(std::stoll(name.substr(kPrefix.size()))));
}

std::optional<int> tensor_parallel_axis(const std::string& name) {
  const auto ends = [&](std::string_view tail) { return name.ends_with(tail); };
  if (is_vocab(name)) return 0;
  if (name.starts_with("mtp.") && name.find(".attn.") == std::string::npos &&
      name.find(".ffn.") == std::string::npos) {
    return std::nullopt;
  }
  if (ends(".attn.wq_b.weight") || ends(".attn.wo_a.weight") || ends(".attn.attn_sink")) return 0;
  if (ends(".attn.wo_b.weight")) return 1;
  if (name.find(".ffn.experts.") == std::string::npos &&
      name.find(".ffn.shared_experts.") == std::string::npos) {
    return std::nullopt;
  }
  return ends(".w2.weight") ? 1 : 0;
}

std::vector<TensorPart> cut_tensor(const ParallelLayout& layout, const std::string& name,
                                   const std::vector<int64_t>& shape, int64_t num_bytes,
                                   int64_t split_from_bytes) {
  const int64_t rows = shape.empty() ? 1 : shape[0], cols = shape.size() == 2 ? shape[1] : 1;
  const std::optional<int> axis = tensor_parallel_axis(name);
  const bool routed = is_routed(name);
  const int64_t shards = routed ? layout.expert_tensor : layout.tensor;
  const std::vector<TensorPart> whole = {{0, 0, rows, 0, cols}};
  if (!axis || shape.size() > 2) return whole;
  const int64_t size = *axis == 0 ? rows : cols;
  // Megatron's ranks own even parts of the padded vocabulary; the padding itself is not stored.
  const int64_t even_size =
      is_vocab(name) && shards > 1 ? padded(size, layout.vocab_multiple * shards) : size;
  int64_t parts = shards;
  if (!routed && shape.size() == 2 && num_bytes >= split_from_bytes) {
    const int64_t finer = std::lcm(shards, kSplitParts);
    if (even_size % finer == 0) parts = finer;
  }
  if (parts == 1) return whole;
  FATHOM_CHECK(even_size % parts == 0, name, " of size ", size, " cannot be cut into ", parts,
               " parts\n  fix: choose another ", routed ? "--expert-tensor" : "--tensor-model",
               "-parallel-size");
  std::vector<TensorPart> out;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t begin = std::min(size, even_size / parts * i);
    const int64_t end = std::min(size, even_size / parts * (i + 1));
    if (begin == end) continue;
    TensorPart part{i / (parts / shards), 0, rows, 0, cols};
    (*axis == 0 ? part.row_begin : part.col_begin) = begin;
    (*axis == 0 ? part.row_end : part.col_end) = end;
    out.push_back(part);
  }
  return out;
}

}  // namespace fathom
