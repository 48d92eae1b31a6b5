#include "fathom/checkpoint/megatron_names.h"

#include <charconv>
#include <optional>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/numerics/tensor.h"

namespace fathom {
namespace {

struct Pair {
  std::string_view official, megatron;
};

constexpr Pair kTop[] = {
    {"embed.weight", "embedding.word_embeddings.weight"},
    {"head.weight", "output_layer.weight"},
    {"norm.weight", "decoder.final_layernorm.weight"},
    {"hc_head_fn", "decoder.hc_head_params.hc_head_fn"},
    {"hc_head_base", "decoder.hc_head_params.hc_head_base"},
    {"hc_head_scale", "decoder.hc_head_params.hc_head_scale"},
};

// Tensors of a layer outside its experts.
constexpr Pair kLayer[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "pre_mlp_layernorm.weight"},
    {"hc_attn_fn", "hc_attn_fn"},
    {"hc_attn_base", "hc_attn_base"},
    {"hc_attn_scale", "hc_attn_scale"},
    {"hc_ffn_fn", "hc_ffn_fn"},
    {"hc_ffn_base", "hc_ffn_base"},
    {"hc_ffn_scale", "hc_ffn_scale"},
    {"attn.wq_a.weight", "self_attention.wq_a.weight"},
    {"attn.q_norm.weight", "self_attention.q_norm.weight"},
    {"attn.wq_b.weight", "self_attention.wq_b.weight"},
    {"attn.wkv.weight", "self_attention.wkv.weight"},
    {"attn.kv_norm.weight", "self_attention.kv_norm.weight"},
    {"attn.wo_a.weight", "self_attention.wo_a.weight"},
    {"attn.wo_b.weight", "self_attention.wo_b.weight"},
    {"attn.attn_sink", "self_attention.attn_sink"},
    {"attn.compressor.ape", "self_attention.compressor.ape"},
    {"attn.compressor.wkv.weight", "self_attention.compressor.wkv.weight"},
    {"attn.compressor.wgate.weight", "self_attention.compressor.wgate.weight"},
    {"attn.compressor.norm.weight", "self_attention.compressor.norm.weight"},
    {"attn.indexer.wq_b.weight", "self_attention.indexer.linear_wq_b.weight"},
    {"attn.indexer.weights_proj.weight", "self_attention.indexer.linear_weights_proj.weight"},
    {"attn.indexer.compressor.ape", "self_attention.indexer.compressor.ape"},
    {"attn.indexer.compressor.wkv.weight", "self_attention.indexer.compressor.wkv.weight"},
    {"attn.indexer.compressor.wgate.weight", "self_attention.indexer.compressor.wgate.weight"},
    {"attn.indexer.compressor.norm.weight", "self_attention.indexer.compressor.norm.weight"},
    {"ffn.gate.weight", "mlp.router.weight"},
    {"ffn.gate.bias", "mlp.router.expert_bias"},
    {"ffn.gate.tid2eid", "mlp.router.tid2eid"},
    {"ffn.shared_experts.w2.weight", "mlp.shared_experts.linear_fc2.weight"},
};

// Tensors of an MTP module outside its layer.
constexpr Pair kMtp[] = {
    {"e_proj.weight", "e_proj.weight"},
    {"h_proj.weight", "h_proj.weight"},
    {"enorm.weight", "enorm.weight"},
    {"hnorm.weight", "hnorm.weight"},
    {"norm.weight", "final_layernorm.weight"},
    {"hc_head_fn", "hc_head_params.hc_head_fn"},
    {"hc_head_base", "hc_head_params.hc_head_base"},
    {"hc_head_scale", "hc_head_params.hc_head_scale"},
};

constexpr std::string_view kSharedFc1 = "mlp.shared_experts.linear_fc1.weight";
constexpr std::string_view kExpertsFc1 = "mlp.experts.experts.linear_fc1.weight";
constexpr std::string_view kExpertsFc2 = "mlp.experts.experts.linear_fc2.weight";

template <size_t N>
std::optional<std::string_view> to_megatron(const Pair (&table)[N], std::string_view name) {
  for (const Pair& p : table) {
    if (p.official == name) return p.megatron;
  }
  return std::nullopt;
}

template <size_t N>
std::optional<std::string_view> to_official(const Pair (&table)[N], std::string_view name) {
  for (const Pair& p : table) {
    if (p.megatron == name) return p.official;
  }
  return std::nullopt;
}

// Takes "<prefix><number>." off the front of `name`; null when it does not start so.
std::optional<int64_t> take_index(std::string_view& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const std::string_view rest = name.substr(prefix.size());
  int64_t index = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), index);
  const auto used = static_cast<size_t>(end - rest.data());
  if (error != std::errc() || index < 0 || used >= rest.size() || rest[used] != '.') {
    return std::nullopt;
  }
  name = rest.substr(used + 1);
  return index;
}

[[noreturn]] void unknown(const std::string& name) {
  throw UserError(str_cat("no DeepSeek-V4 tensor has the name ", name,
                          "\n  fix: check that the checkpoint is of this model family"));
}

void place_whole(MegatronSlice& s, const std::vector<int64_t>& shape) {
  s.shape = s.sizes = shape;
  s.offsets.assign(shape.size(), 0);
}

// w1 and w3 are the halves of dimension 0 of one matrix.
void place_half(MegatronSlice& s, const std::vector<int64_t>& shape, bool up) {
  place_whole(s, shape);
  s.shape[0] = 2 * shape[0];
  s.offsets[0] = up ? shape[0] : 0;
}

void prepend(MegatronSlice& s, int64_t expert, int64_t num_experts) {
  s.shape.insert(s.shape.begin(), num_experts);
  s.sizes.insert(s.sizes.begin(), 1);
  s.offsets.insert(s.offsets.begin(), expert);
}

}  // namespace

bool is_kept_fp32(std::string_view name) {
  const std::string_view leaf = name.substr(name.rfind('.') + 1);
  return leaf == "attn_sink" || leaf == "ape" || leaf.starts_with("hc_") ||
         name.ends_with("ffn.gate.bias");
}

MegatronSlice megatron_slice(const std::string& name, const std::vector<int64_t>& shape,
                             int64_t num_experts) {
  MegatronSlice s;
  s.dtype = name.ends_with(".tid2eid") ? DType::kI32
            : is_kept_fp32(name)       ? DType::kF32
                                       : DType::kBF16;
  if (const auto top = to_megatron(kTop, name)) {
    s.key = *top;
    place_whole(s, shape);
    return s;
  }
  std::string_view rest = name;
  std::string prefix;
  if (const auto layer = take_index(rest, "layers.")) {
    prefix = str_cat("decoder.layers.", *layer, ".");
  } else if (const auto module = take_index(rest, "mtp.")) {
    prefix = str_cat("mtp.layers.", *module, ".");
    if (const auto own = to_megatron(kMtp, rest)) {
      s.key = prefix + std::string(*own);
      place_whole(s, shape);
      return s;
    }
    prefix += "transformer_layer.";
  } else {
    unknown(name);
  }
  if (const auto plain = to_megatron(kLayer, rest)) {
    s.key = prefix + std::string(*plain);
    place_whole(s, shape);
    return s;
  }
  const bool shared = rest.starts_with("ffn.shared_experts.");
  std::optional<int64_t> expert;
  if (shared) {
    rest.remove_prefix(std::string_view("ffn.shared_experts.").size());
  } else {
    expert = take_index(rest, "ffn.experts.");
    if (!expert) unknown(name);
  }
  const bool gate = rest == "w1.weight", up = rest == "w3.weight";
  if ((!gate && !up && rest != "w2.weight") || shape.size() != 2) unknown(name);
  if (gate || up) {
    place_half(s, shape, up);
  } else {
    place_whole(s, shape);
  }
  if (shared) {
    s.key = prefix + std::string(kSharedFc1);
    return s;
  }
  FATHOM_CHECK(*expert < num_experts, name, ": the model has ", num_experts, " experts",
               "\n  fix: use the config.json that belongs to these weights");
  prepend(s, *expert, num_experts);
  s.key = prefix + std::string(gate || up ? kExpertsFc1 : kExpertsFc2);
  return s;
}

std::string official_name(const std::string& key, int64_t expert, bool up_half) {
  if (const auto top = to_official(kTop, key)) return std::string(*top);
  std::string_view rest = key;
  std::string prefix;
  if (const auto layer = take_index(rest, "decoder.layers.")) {
    prefix = str_cat("layers.", *layer, ".");
  } else if (const auto module = take_index(rest, "mtp.layers.")) {
    prefix = str_cat("mtp.", *module, ".");
    if (const auto own = to_official(kMtp, rest)) return prefix + std::string(*own);
    constexpr std::string_view kInner = "transformer_layer.";
    if (!rest.starts_with(kInner)) unknown(key);
    rest.remove_prefix(kInner.size());
  } else {
    unknown(key);
  }
  if (const auto plain = to_official(kLayer, rest)) return prefix + std::string(*plain);
  const char* half = up_half ? "w3.weight" : "w1.weight";
  if (rest == kSharedFc1) return str_cat(prefix, "ffn.shared_experts.", half);
  if (rest == kExpertsFc1) return str_cat(prefix, "ffn.experts.", expert, ".", half);
  if (rest == kExpertsFc2) return str_cat(prefix, "ffn.experts.", expert, ".w2.weight");
  unknown(key);
}

}  // namespace fathom
