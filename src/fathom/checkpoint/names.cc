#include "fathom/checkpoint/names.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "fathom/base/error.h"

namespace fathom {
namespace {

using Parts = std::vector<std::string>;
using Renames = std::vector<std::pair<std::string_view, std::string_view>>;  // official, other

constexpr std::array<std::pair<NameDialect, std::string_view>, 3> kDialects = {
    {{NameDialect::kOfficial, "official"},
     {NameDialect::kSglang, "sglang"},
     {NameDialect::kTransformers, "transformers"}}};

// One component of a name, below the place that the variable names.
const Renames kAttention = {{"wq_a", "q_a_proj"},  {"q_norm", "q_a_norm"}, {"wq_b", "q_b_proj"},
                            {"wkv", "kv_proj"},    {"wo_a", "o_a_proj"},   {"wo_b", "o_b_proj"},
                            {"attn_sink", "sinks"}};
const Renames kCompressor = {
    {"wkv", "kv_proj"}, {"wgate", "gate_proj"}, {"ape", "position_bias"}, {"norm", "kv_norm"}};
const Renames kExpert = {{"w1", "gate_proj"}, {"w2", "down_proj"}, {"w3", "up_proj"}};

void to_official(std::string& part, const Renames& renames) {
  for (const auto& [official, other] : renames) {
    if (part == other) {
      part = official;
      return;
    }
  }
}

void from_official(std::string& part, const Renames& renames) {
  for (const auto& [official, other] : renames) {
    if (part == official) {
      part = other;
      return;
    }
  }
}

Parts split(std::string_view name) {
  Parts parts(1);
  for (const char c : name) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::string join(const Parts& parts) {
  std::string name;
  for (size_t i = 0; i < parts.size(); ++i) name += (i == 0 ? "" : ".") + parts[i];
  return name;
}

std::optional<int64_t> to_index(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool canonical = error == std::errc() && end == text.data() + text.size() && value >= 0 &&
                         (text == "0" || text.front() != '0');
  return canonical ? std::optional(value) : std::nullopt;
}

bool is(const Parts& parts, size_t i, std::string_view text) {
  return i < parts.size() && parts[i] == text;
}

void erase_part(Parts& parts, size_t i) {
  parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i));
}
void insert_part(Parts& parts, size_t i, std::string text) {
  parts.insert(parts.begin() + static_cast<std::ptrdiff_t>(i), std::move(text));
}

// parts[0] is the first component below the layer. Every rule leaves official names alone.
void layer_to_official(Parts& parts, bool& is_fused) {
  if (is(parts, 0, "self_attn")) parts[0] = "attn";
  if (is(parts, 0, "mlp")) parts[0] = "ffn";
  if (is(parts, 0, "input_layernorm")) parts[0] = "attn_norm";
  if (is(parts, 0, "post_attention_layernorm")) parts[0] = "ffn_norm";
  if (parts.size() == 2 && (parts[0] == "attn_hc" || parts[0] == "ffn_hc")) {
    parts = {(parts[0] == "attn_hc" ? "hc_attn_" : "hc_ffn_") + parts[1]};
    return;
  }
  if (parts.size() == 2 && parts[0] == "hc_head" && parts[1].starts_with("hc_")) {
    parts = {"hc_head_" + parts[1].substr(3)};
    return;
  }
  if (is(parts, 0, "shared_head") && is(parts, 1, "norm")) erase_part(parts, 0);
  if (parts.size() < 2) return;
  if (parts[0] == "attn") {
    to_official(parts[1], kAttention);
    // save_pretrained of transformers 5 writes kv_norm back as norm.
    if (parts[1] == "norm") parts[1] = "kv_norm";
    if (is(parts, 1, "compressor") && is(parts, 2, "indexer")) {
      erase_part(parts, 1);
      if (is(parts, 2, "q_b_proj")) {
        parts[2] = "wq_b";
      } else if (is(parts, 2, "scorer") && is(parts, 3, "weights_proj")) {
        erase_part(parts, 2);
      } else if (!is(parts, 2, "wq_b") && !is(parts, 2, "weights_proj")) {
        insert_part(parts, 2, "compressor");
      }
    }
    const size_t leaf = is(parts, 1, "indexer") ? 3 : 2;
    if (is(parts, leaf - 1, "compressor") && leaf < parts.size()) {
      to_official(parts[leaf], kCompressor);
    }
  } else if (parts[0] == "ffn") {
    if (is(parts, 1, "gate") && is(parts, 2, "e_score_correction_bias")) parts[2] = "bias";
    if (is(parts, 1, "topk") && is(parts, 2, "tid2eid")) parts[1] = "gate";
    if (is(parts, 1, "shared_experts") && parts.size() > 2) to_official(parts[2], kExpert);
    if (is(parts, 1, "experts") && parts.size() > 3) to_official(parts[3], kExpert);
    if (is(parts, 1, "experts") && parts.size() == 3 &&
        (parts[2] == "gate_up_proj" || parts[2] == "down_proj")) {
      parts[2] = parts[2].substr(0, parts[2].size() - 5);
      is_fused = true;
    }
  }
}

void layer_from_official(Parts& parts, NameDialect dialect) {
  const bool transformers = dialect == NameDialect::kTransformers;
  if (parts[0] == "attn_norm") parts[0] = "input_layernorm";
  if (parts[0] == "ffn_norm") parts[0] = "post_attention_layernorm";
  if (transformers && parts[0].starts_with("hc_attn_")) parts = {"attn_hc", parts[0].substr(8)};
  if (transformers && parts[0].starts_with("hc_ffn_")) parts = {"ffn_hc", parts[0].substr(7)};
  if (parts[0] == "attn") {
    parts[0] = "self_attn";
    if (!transformers) return;
    if (parts[1] == "indexer") {
      if (parts[2] == "wq_b") {
        parts[2] = "q_b_proj";
      } else if (parts[2] == "weights_proj") {
        insert_part(parts, 2, "scorer");
      } else {  // compressor.<leaf>
        erase_part(parts, 2);
        from_official(parts[2], kCompressor);
      }
      insert_part(parts, 1, "compressor");
    } else if (parts[1] == "compressor") {
      from_official(parts[2], kCompressor);
    } else {
      from_official(parts[1], kAttention);
    }
  } else if (parts[0] == "ffn") {
    parts[0] = "mlp";
    if (is(parts, 1, "gate") && is(parts, 2, "bias")) parts[2] = "e_score_correction_bias";
    if (!transformers && is(parts, 1, "gate") && is(parts, 2, "tid2eid")) parts[1] = "topk";
    if (is(parts, 1, "shared_experts")) from_official(parts[2], kExpert);
    if (is(parts, 1, "experts")) from_official(parts[3], kExpert);
  }
}

}  // namespace

std::string_view name_dialect_to_string(NameDialect dialect) {
  for (const auto& [value, text] : kDialects) {
    if (value == dialect) return text;
  }
  return "unknown";
}

std::optional<NameDialect> name_dialect_from_string(std::string_view text) {
  for (const auto& [value, name] : kDialects) {
    if (name == text) return value;
  }
  return std::nullopt;
}

bool is_shared_copy(std::string_view official) {
  if (!official.starts_with("mtp.")) return false;
  return official.ends_with(".emb.tok_emb.weight") || official.ends_with(".head.weight") ||
         official.ends_with(".embed_tokens.weight");
}

TensorName parse_tensor_name(std::string_view name, int64_t num_hidden_layers) {
  TensorName result;
  Parts parts = split(name);
  if (parts.size() > 1 && parts[0] == "model") erase_part(parts, 0);

  std::string& last = parts.back();
  const bool is_hc_scale = parts.size() > 1 && (is(parts, parts.size() - 2, "attn_hc") ||
                                                is(parts, parts.size() - 2, "ffn_hc"));
  if (parts.size() > 1 && last == "scale" && !is_hc_scale) {
    last = "weight";
    result.is_scale = true;
  } else if (last.ends_with("_scale_inv")) {
    last.resize(last.size() - std::string_view("_scale_inv").size());
    result.is_scale = true;
  }

  if (is(parts, 0, "embed_tokens")) parts[0] = "embed";
  if (is(parts, 0, "lm_head")) parts[0] = "head";
  const auto index = parts.size() > 2 ? to_index(parts[1]) : std::nullopt;
  if (index && (parts[0] == "layers" || parts[0] == "mtp")) {
    const bool is_mtp = parts[0] == "mtp" || *index >= num_hidden_layers;
    const int64_t i = parts[0] == "layers" && is_mtp ? *index - num_hidden_layers : *index;
    Parts inner(parts.begin() + 2, parts.end());
    layer_to_official(inner, result.is_fused);
    result.official = str_cat(is_mtp ? "mtp." : "layers.", i, ".", join(inner));
  } else {
    if (parts.size() == 2 && parts[0] == "hc_head" && parts[1].starts_with("hc_")) {
      parts = {"hc_head_" + parts[1].substr(3)};
    }
    result.official = join(parts);
  }
  return result;
}

std::string stored_name(const std::string& official, NameDialect dialect,
                        int64_t num_hidden_layers) {
  if (dialect == NameDialect::kOfficial) return official;
  Parts parts = split(official);
  const bool transformers = dialect == NameDialect::kTransformers;
  if (parts[0] == "mtp") {
    if (transformers) return official;  // ignored on load there, under any name
    Parts inner(parts.begin() + 2, parts.end());
    if (inner[0] == "norm") insert_part(inner, 0, "shared_head");
    layer_from_official(inner, dialect);
    const auto module = to_index(parts[1]);
    FATHOM_ASSERT(module.has_value(), official);
    return str_cat("model.layers.", num_hidden_layers + *module, ".", join(inner));
  }
  if (parts[0] == "layers") {
    FATHOM_ASSERT(!fused_stored_name(official, dialect), official);
    Parts inner(parts.begin() + 2, parts.end());
    layer_from_official(inner, dialect);
    return str_cat("model.layers.", parts[1], ".", join(inner));
  }
  if (official == "embed.weight") return "model.embed_tokens.weight";
  if (official == "head.weight") return "lm_head.weight";
  if (transformers && official.starts_with("hc_head_")) {
    return "model.hc_head.hc_" + official.substr(8);
  }
  return "model." + official;
}

std::string stored_scale_name(const std::string& official, NameDialect dialect,
                              int64_t num_hidden_layers) {
  const std::string name = stored_name(official, dialect, num_hidden_layers);
  FATHOM_ASSERT(name.ends_with(".weight"), name);
  if (dialect != NameDialect::kOfficial) return name + "_scale_inv";
  return name.substr(0, name.size() - 6) + "scale";
}

std::optional<ExpertName> parse_expert_name(const std::string& official) {
  const Parts parts = split(official);
  if (parts.size() != 7 || parts[2] != "ffn" || parts[3] != "experts" || parts[6] != "weight") {
    return std::nullopt;
  }
  const auto expert = to_index(parts[4]);
  if (!expert) return std::nullopt;
  return ExpertName{str_cat(parts[0], ".", parts[1], ".ffn"), *expert, parts[5]};
}

std::optional<std::string> fused_stored_name(const std::string& official, NameDialect dialect) {
  const auto expert = parse_expert_name(official);
  if (!expert || dialect != NameDialect::kTransformers || mtp_module(official)) {
    return std::nullopt;
  }
  return str_cat("model.", expert->moe.substr(0, expert->moe.rfind('.')), ".mlp.experts.",
                 expert->matrix == "w2" ? "down_proj" : "gate_up_proj");
}

std::optional<int64_t> mtp_module(const std::string& official) {
  if (!official.starts_with("mtp.")) return std::nullopt;
  const Parts parts = split(official);
  return to_index(parts[1]);
}

NameDialect detect_name_dialect(const std::vector<std::string>& names) {
  bool sglang = false;
  for (const std::string& name : names) {
    if (name == "embed.weight") return NameDialect::kOfficial;
    sglang = sglang || name.find(".self_attn.wkv.") != std::string::npos;
  }
  return sglang ? NameDialect::kSglang : NameDialect::kTransformers;
}

}  // namespace fathom
