#include "fathom/model/config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 31;  // products of two sizes then fit into 64 bits
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxExperts = 65536;

constexpr const char* kSliding = "sliding_attention";
constexpr const char* kCsa = "compressed_sparse_attention";
constexpr const char* kHca = "heavily_compressed_attention";

using Names = std::vector<std::string>;  // one quantity, as the dialects spell it; hub first

// Looks fields up under their names in all dialects and collects every problem instead of stopping
// at the first.
class FieldReader {
 public:
  explicit FieldReader(const Json& json) : json_(json) {}

  template <typename... Parts>
  void problem(const Parts&... parts) {
    const std::string text = str_cat(parts...);
    if (std::find(problems_.begin(), problems_.end(), text) == problems_.end()) {
      problems_.push_back(text);
    }
  }
  const std::vector<std::string>& problems() const { return problems_; }

  /// False for a field that was missing or wrong: nothing that depends on it is worth a complaint.
  bool ok(const std::string& hub_name) const { return !bad_.contains(hub_name); }

  /// The value under any of the names, null when there is none (JSON null counts as none).
  const Json* find(const Names& names) {
    const Json* found = nullptr;
    const std::string* found_name = nullptr;
    for (const std::string& name : names) {
      const auto it = json_.find(name);
      if (it == json_.end() || it->is_null()) continue;
      if (found != nullptr && *found != *it) {
        problem(*found_name, " (", found->dump(), ") and ", name, " (", it->dump(),
                ") mean the same and differ");
        continue;
      }
      if (found == nullptr) {
        found = &*it;
        found_name = &name;
      }
    }
    return found;
  }

  /// An integer in [low, high]. Missing without a default: a problem.
  int64_t integer(const Names& names, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt) {
    const Json* value = find(names);
    if (value == nullptr) {
      if (fallback) return *fallback;
      bad_.insert(names.front());
      problem(missing(names), " (an integer of at least ", low, ")");
      return low;
    }
    if (!value->is_number_integer()) {
      bad_.insert(names.front());
      problem(names.front(), " must be an integer, got ", value->dump());
      return low;
    }
    const bool too_large =
        value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(high);
    const int64_t n = too_large ? high : value->get<int64_t>();
    if (too_large || n < low || n > high) {
      bad_.insert(names.front());
      problem(names.front(), " must be between ", low, " and ", high, ", got ", value->dump());
      return low;
    }
    return n;
  }

  /// A finite number >= low (> low when `exclusive`).
  double number(const Names& names, double low, bool exclusive,
                std::optional<double> fallback = std::nullopt) {
    const Json* value = find(names);
    if (value == nullptr) {
      if (!fallback) problem(missing(names), " (a number)");
      return fallback.value_or(1.0);
    }
    return check_number(names.front(), *value, low, exclusive);
  }

  double check_number(const std::string& name, const Json& value, double low, bool exclusive) {
    const double x = value.is_number() ? value.get<double>() : NAN;
    if (!std::isfinite(x) || x < low || (exclusive && x == low)) {
      problem(name, " must be a number ", exclusive ? "above " : "of at least ", low, ", got ",
              value.dump());
      return low + 1.0;
    }
    return x;
  }

  /// A switch of which only one value is implemented; absent means that value.
  void only(const Names& names, const Json& supported) {
    const Json* value = find(names);
    if (value != nullptr && *value != supported) {
      problem(names.front(), " must be ", supported.dump(), ", got ", value->dump());
    }
  }

  static std::string missing(const Names& names) {
    std::string text = names.front() + " is missing";
    for (size_t i = 1; i < names.size(); ++i) text += (i == 1 ? ", also as " : ", ") + names[i];
    return text;
  }

 private:
  const Json& json_;
  std::vector<std::string> problems_;
  std::set<std::string> bad_;
};

void read_sizes(FieldReader& in, ModelConfig& c) {
  c.vocab_size = in.integer({"vocab_size"}, 1, kMaxSize);
  c.hidden_size = in.integer({"hidden_size", "dim"}, 1, kMaxSize);
  c.num_hidden_layers = in.integer({"num_hidden_layers", "n_layers"}, 1, kMaxLayers);
  c.num_nextn_predict_layers =
      in.integer({"num_nextn_predict_layers", "n_mtp_layers"}, 0, kMaxLayers, 0);
  c.num_attention_heads = in.integer({"num_attention_heads", "n_heads"}, 1, kMaxExperts);
  c.head_dim = in.integer({"head_dim"}, 1, kMaxExperts);
  c.q_lora_rank = in.integer({"q_lora_rank"}, 1, kMaxSize);
  c.o_groups = in.integer({"o_groups"}, 1, kMaxExperts);
  c.o_lora_rank = in.integer({"o_lora_rank"}, 1, kMaxSize);
  c.sliding_window = in.integer({"sliding_window", "window_size"}, 1, kMaxSize);
  c.n_routed_experts = in.integer({"n_routed_experts", "num_local_experts"}, 1, kMaxExperts);
  c.num_experts_per_tok =
      in.integer({"num_experts_per_tok", "n_activated_experts"}, 1, kMaxExperts);
  c.moe_intermediate_size =
      in.integer({"moe_intermediate_size", "moe_inter_dim", "intermediate_size"}, 1, kMaxSize);
  c.routed_scaling_factor = in.number({"routed_scaling_factor", "route_scale"}, 0.0, true);
  c.swiglu_limit = in.number({"swiglu_limit"}, 0.0, false);
  c.hc_mult = in.integer({"hc_mult"}, 1, 64);
  c.hc_sinkhorn_iters = in.integer({"hc_sinkhorn_iters"}, 1, 1000);
  c.hc_eps = in.number({"hc_eps"}, 0.0, true);
  c.rms_norm_eps = in.number({"rms_norm_eps", "norm_eps"}, 0.0, true);

  if (in.ok("num_attention_heads") && c.num_attention_heads % c.o_groups != 0) {
    in.problem("o_groups must divide num_attention_heads (", c.num_attention_heads, "), got ",
               c.o_groups);
  }
  if (in.ok("n_routed_experts") && c.num_experts_per_tok > c.n_routed_experts) {
    in.problem("num_experts_per_tok must be at most n_routed_experts (", c.n_routed_experts,
               "), got ", c.num_experts_per_tok);
  }
}

void read_rope_dim(FieldReader& in, ModelConfig& c) {
  if (const Json* factor = in.find({"partial_rotary_factor"});
      factor != nullptr && in.find({"qk_rope_head_dim", "rope_head_dim"}) == nullptr) {
    const double share = in.check_number("partial_rotary_factor", *factor, 0.0, true);
    c.qk_rope_head_dim = std::llround(std::min(share, 2.0) * static_cast<double>(c.head_dim));
  } else {
    c.qk_rope_head_dim = in.integer({"qk_rope_head_dim", "rope_head_dim"}, 2, kMaxSize);
  }
  if (!in.ok("head_dim") || !in.ok("qk_rope_head_dim")) return;
  if (c.qk_rope_head_dim < 2 || c.qk_rope_head_dim % 2 != 0 || c.qk_rope_head_dim > c.head_dim) {
    in.problem("qk_rope_head_dim must be even, at least 2 and at most head_dim (", c.head_dim,
               "), got ", c.qk_rope_head_dim);
  }
}

// compress_ratios (hub, original) and layer_types with compress_rates (transformers). A list may be
// longer than the layers: what follows belongs to the MTP modules, or to draft stages.
void read_ratios(FieldReader& in, ModelConfig& c) {
  if (!in.ok("num_hidden_layers")) return;
  const auto num_layers = static_cast<size_t>(c.num_hidden_layers);
  const Json* ratios = in.find({"compress_ratios"});
  const Json* types = in.find({"layer_types"});
  std::vector<int64_t> from_list, from_types;
  if (ratios != nullptr) {
    if (!ratios->is_array() || ratios->size() < num_layers) {
      in.problem("compress_ratios must be a list of at least num_hidden_layers (", num_layers,
                 ") numbers, got ", ratios->is_array() ? str_cat(ratios->size()) : ratios->dump());
    } else {
      for (size_t i = 0; i < ratios->size(); ++i) {
        const Json& r = (*ratios)[i];
        const bool valid = r.is_number_integer() && (r == 0 || (r >= 2 && r <= kMaxSize));
        if (!valid) {
          in.problem("compress_ratios[", i, "] must be 0 (window only), 4 (sparse, with indexer) ",
                     "or another whole number of at least 2, got ", r.dump());
        }
        from_list.push_back(valid ? r.get<int64_t>() : 0);
      }
    }
  }
  if (types != nullptr) {
    int64_t csa = 4, hca = 128;
    const Json* rates = in.find({"compress_rates"});
    if (rates != nullptr && rates->is_object()) {
      FieldReader nested(*rates);
      csa = nested.integer({kCsa}, 2, kMaxSize, 4);
      hca = nested.integer({kHca}, 2, kMaxSize, 128);
      for (const auto& p : nested.problems()) in.problem("compress_rates: ", p);
    } else if (rates != nullptr) {
      in.problem("compress_rates must be an object, got ", rates->dump());
    }
    csa = in.integer({"compress_rate_csa"}, 2, kMaxSize, csa);
    hca = in.integer({"compress_rate_hca"}, 2, kMaxSize, hca);
    if (csa != 4) in.problem("compress_rates: ", kCsa, " must be 4, got ", csa);
    if (hca == 4) in.problem("compress_rates: ", kHca, " must differ from 4");
    if (!types->is_array() || types->size() < num_layers) {
      in.problem("layer_types must be a list of num_hidden_layers (", num_layers, ") names, got ",
                 types->is_array() ? str_cat(types->size()) : types->dump());
    } else {
      for (size_t i = 0; i < num_layers; ++i) {
        const Json& t = (*types)[i];
        if (t != kSliding && t != kCsa && t != kHca) {
          in.problem("layer_types[", i, "] must be ", kSliding, ", ", kCsa, " or ", kHca, ", got ",
                     t.dump());
        }
        from_types.push_back(t == kCsa ? 4 : t == kHca ? hca : 0);
      }
    }
  }
  if (ratios == nullptr && types == nullptr) {
    in.problem("compress_ratios is missing, also as layer_types: without one of the two the ",
               "compression of each layer is not known");
  }
  for (size_t i = 0; i < std::min(from_list.size(), from_types.size()); ++i) {
    if (from_list[i] != from_types[i]) {
      in.problem("compress_ratios[", i, "] (", from_list[i], ") and layer_types[", i, "] (ratio ",
                 from_types[i], ") differ");
    }
  }
  c.compress_ratios = !from_list.empty() ? from_list : from_types;
  const auto num_modules = static_cast<size_t>(c.num_hidden_layers + c.num_nextn_predict_layers);
  c.compress_ratios.resize(num_modules, 0);
  for (size_t i = num_layers; i < num_modules; ++i) {
    if (c.compress_ratios[i] != 0) {
      in.problem("compress_ratios[", i, "] belongs to MTP module ", i - num_layers,
                 " and must be 0, got ", c.compress_ratios[i]);
    }
  }
}

void read_hash_layers(FieldReader& in, ModelConfig& c) {
  const Json* types = in.find({"mlp_layer_types"});
  const bool counted = in.find({"num_hash_layers", "n_hash_layers"}) != nullptr;
  if (counted || types == nullptr) {
    c.num_hash_layers = in.integer({"num_hash_layers", "n_hash_layers"}, 0, kMaxLayers);
    // A model that was cut to fewer layers keeps the number of the whole one.
    if (in.ok("num_hidden_layers")) {
      c.num_hash_layers = std::min(c.num_hash_layers, c.num_hidden_layers);
    }
  }
  if (types == nullptr || !in.ok("num_hidden_layers")) return;
  if (!types->is_array() || static_cast<int64_t>(types->size()) < c.num_hidden_layers) {
    in.problem("mlp_layer_types must be a list of num_hidden_layers (", c.num_hidden_layers,
               ") names, got ", types->is_array() ? str_cat(types->size()) : types->dump());
    return;
  }
  int64_t num_hash = 0;
  for (size_t i = 0; i < static_cast<size_t>(c.num_hidden_layers); ++i) {
    const Json& t = (*types)[i];
    if (t == "hash_moe" && num_hash == static_cast<int64_t>(i)) {
      ++num_hash;
    } else if (t != "moe") {
      in.problem("mlp_layer_types must be hash_moe for the first layers, then moe; entry ", i,
                 " is ", t.dump());
    }
  }
  if (counted && num_hash != c.num_hash_layers) {
    in.problem("num_hash_layers (", c.num_hash_layers, ") and mlp_layer_types (", num_hash,
               " hash_moe entries) differ");
  }
  c.num_hash_layers = num_hash;
}

void read_yarn(FieldReader& in, const std::string& where, const Json& json, RopeScaling& scaling) {
  FieldReader nested(json);
  const Json* type = nested.find({"rope_type", "type"});
  if (type == nullptr || *type == "default") {
    if (type == nullptr && json.contains("factor")) nested.problem("rope_type is missing");
  } else if (*type != "yarn") {
    nested.problem("rope_type must be yarn or default, got ", type->dump());
  } else {
    scaling.factor = nested.number({"factor"}, 1.0, false);
    scaling.beta_fast = nested.number({"beta_fast"}, 0.0, true, 32.0);
    scaling.beta_slow = nested.number({"beta_slow"}, 0.0, true, 1.0);
    scaling.original_max_position_embeddings =
        nested.integer({"original_max_position_embeddings"}, 1, kMaxSize);
    // The model never scales cos and sin, so any other value describes another model.
    nested.only({"attention_factor"}, 1.0);
  }
  for (const auto& p : nested.problems()) in.problem(where, ": ", p);
}

void read_rope(FieldReader& in, const Json& json, ModelConfig& c) {
  Names theta_places;
  auto theta = [&](double& value, const std::string& place, const Json& holder,
                   const std::string& key) {
    const auto it = holder.find(key);
    if (it == holder.end() || it->is_null()) return;
    const double got = in.check_number(place, *it, 1.0, true);
    if (value != 0.0 && value != got) {
      in.problem(place, " (", got, ") differs from the value given elsewhere (", value, ")");
    }
    value = got;
  };
  c.rope_theta = c.compress_rope_theta = 0.0;
  theta(c.rope_theta, "rope_theta", json, "rope_theta");
  theta(c.compress_rope_theta, "compress_rope_theta", json, "compress_rope_theta");

  const Json* nested = in.find({"rope_parameters"});
  if (nested != nullptr && nested->is_object() && nested->contains("main") &&
      nested->contains("compress") && (*nested)["main"].is_object() &&
      (*nested)["compress"].is_object()) {
    theta(c.rope_theta, "rope_parameters.main.rope_theta", (*nested)["main"], "rope_theta");
    theta(c.compress_rope_theta, "rope_parameters.compress.rope_theta", (*nested)["compress"],
          "rope_theta");
    read_yarn(in, "rope_parameters.compress", (*nested)["compress"], c.rope_scaling);
  } else if (const Json* flat = in.find({"rope_scaling", "rope_parameters"}); flat != nullptr) {
    if (!flat->is_object()) {
      in.problem("rope_scaling must be an object or null, got ", flat->dump());
    } else {
      theta(c.rope_theta, "rope_scaling.rope_theta", *flat, "rope_theta");
      read_yarn(in, "rope_scaling", *flat, c.rope_scaling);
    }
  } else if (in.find({"original_seq_len"}) != nullptr) {
    // Original dialect: a length of 0 switches YaRN off whatever the factor.
    const int64_t original = in.integer({"original_seq_len"}, 0, kMaxSize);
    if (original > 0) {
      c.rope_scaling.original_max_position_embeddings = original;
      c.rope_scaling.factor = in.number({"rope_factor"}, 1.0, false);
      c.rope_scaling.beta_fast = in.number({"beta_fast"}, 0.0, true);
      c.rope_scaling.beta_slow = in.number({"beta_slow"}, 0.0, true);
    }
  }
  if (c.rope_scaling.beta_fast < c.rope_scaling.beta_slow) {
    in.problem("rope_scaling: beta_fast (", c.rope_scaling.beta_fast,
               ") must be at least beta_slow (", c.rope_scaling.beta_slow, ")");
  }
  if (c.rope_theta == 0.0) in.problem("rope_theta is missing (a number)");
  const bool compressed = std::any_of(c.compress_ratios.begin(), c.compress_ratios.end(),
                                      [](int64_t r) { return r > 0; });
  if (c.compress_rope_theta == 0.0) {
    if (compressed) in.problem("compress_rope_theta is missing (a number)");
    c.compress_rope_theta = ModelConfig{}.compress_rope_theta;
  }
  // The preview of early 2026 stores the two halves of the ratio-4 position table swapped and is
  // recognised by its YaRN factor alone.
  if (c.num_hidden_layers == 43 && c.hidden_size == 4096 && c.rope_scaling.factor == 4.0) {
    in.problem("rope_scaling.factor 4 marks the preview checkpoint of DeepSeek-V4-Flash, whose ",
               "compressor tables are stored differently; use the released checkpoint");
  }
}

void read_max_position(FieldReader& in, const Json& json, ModelConfig& c) {
  const Names names{"max_position_embeddings", "max_seq_len"};
  if (in.find(names) == nullptr && json.contains("original_seq_len") &&
      c.rope_scaling.original_max_position_embeddings > 0) {
    // The original dialect does not say it; YaRN was made for exactly this length.
    c.max_position_embeddings =
        std::llround(c.rope_scaling.factor *
                     static_cast<double>(c.rope_scaling.original_max_position_embeddings));
    return;
  }
  c.max_position_embeddings = in.integer(names, 1, kMaxSize);
}

void read_indexer(FieldReader& in, ModelConfig& c) {
  const bool needed =
      std::find(c.compress_ratios.begin(), c.compress_ratios.end(), 4) != c.compress_ratios.end();
  const auto fallback = needed ? std::nullopt : std::optional<int64_t>(0);
  const int64_t low = needed ? 1 : 0;
  c.index_n_heads = in.integer({"index_n_heads"}, low, kMaxExperts, fallback);
  c.index_head_dim = in.integer({"index_head_dim"}, low, kMaxExperts, fallback);
  c.index_topk = in.integer({"index_topk"}, low, kMaxSize, fallback);
  if (needed && in.ok("index_head_dim") && in.ok("qk_rope_head_dim") &&
      c.index_head_dim < c.qk_rope_head_dim) {
    in.problem("index_head_dim must be at least qk_rope_head_dim (", c.qk_rope_head_dim, "), got ",
               c.index_head_dim);
  }
}

std::vector<int64_t> read_token_ids(FieldReader& in, const std::string& name, const Json* value,
                                    int64_t vocab_size) {
  std::vector<int64_t> ids;
  if (value == nullptr || value->is_null()) return ids;
  const std::vector<Json> items =
      value->is_array() ? value->get<std::vector<Json>>() : std::vector<Json>{*value};
  for (const Json& item : items) {
    if (!item.is_number_integer() || item < 0 || item >= vocab_size) {
      in.problem(name, " must be a token id below vocab_size (", vocab_size,
                 ") or a list of them, got ", value->dump());
      return {};
    }
    ids.push_back(item.get<int64_t>());
  }
  return ids;
}

void read_fixed_switches(FieldReader& in, const Json& json) {
  const bool original_dialect = json.contains("dim") && json.contains("n_layers");
  const Json* type = in.find({"model_type"});
  if (type == nullptr) {
    if (!original_dialect) in.problem("model_type is missing (deepseek_v4)");
  } else if (*type != "deepseek_v4" && *type != "deepseek_ref") {
    in.problem("model_type must be \"deepseek_v4\", got ", type->dump());
  }
  in.only({"n_shared_experts"}, 1);
  in.only({"num_key_value_heads"}, 1);
  in.only({"scoring_func", "score_func"}, "sqrtsoftplus");
  in.only({"topk_method"}, "noaux_tc");
  in.only({"norm_topk_prob"}, true);
  in.only({"hidden_act"}, "silu");
  in.only({"tie_word_embeddings"}, false);
  in.only({"attention_bias"}, false);
  in.only({"mlp_bias"}, false);
}

[[noreturn]] void throw_problems(const std::string& origin,
                                 const std::vector<std::string>& problems) {
  std::string text = str_cat(origin, ": not a DeepSeek-V4 configuration that can be run, ",
                             problems.size(), problems.size() == 1 ? " problem:" : " problems:");
  for (const std::string& p : problems) text += "\n  - " + p;
  throw UserError(text + "\n  fix: take the config.json that belongs to the weights, unchanged");
}

}  // namespace

int64_t ModelConfig::num_indexer_layers() const {
  return std::count(compress_ratios.begin(), compress_ratios.begin() + num_hidden_layers, 4);
}

ModelConfig parse_model_config(const Json& json, const std::string& origin) {
  FATHOM_CHECK(json.is_object(), origin, ": must hold a JSON object, got ", json.type_name());
  FieldReader in(json);
  ModelConfig c;
  read_fixed_switches(in, json);
  read_sizes(in, c);
  // Releases with the block-parallel draft head call its stages mtp.*; they are no MTP modules.
  for (const auto& item : json.items()) {
    if (item.key().starts_with("dspark_")) c.num_nextn_predict_layers = 0;
  }
  read_rope_dim(in, c);
  read_ratios(in, c);
  read_hash_layers(in, c);
  read_rope(in, json, c);
  read_max_position(in, json, c);
  read_indexer(in, c);
  const int64_t id_limit = in.ok("vocab_size") ? c.vocab_size : kMaxSize;
  const auto bos = read_token_ids(in, "bos_token_id", in.find({"bos_token_id"}), id_limit);
  if (!bos.empty()) c.bos_token_id = bos.front();
  c.eos_token_ids = read_token_ids(in, "eos_token_id", in.find({"eos_token_id"}), id_limit);
  if (!in.problems().empty()) throw_problems(origin, in.problems());
  return c;
}

ModelConfig load_model_config(const std::string& directory) {
  const std::string path = join_path(directory, "config.json");
  FATHOM_CHECK(directory_exists(directory), "no model directory ", directory,
               "\n  fix: give a directory that holds config.json and safetensors files");
  FATHOM_CHECK(file_exists(path), "no config.json in ", directory,
               "\n  fix: give a directory that holds config.json and safetensors files");
  ModelConfig c = parse_model_config(read_json_file(path), path);
  const std::string generation_path = join_path(directory, "generation_config.json");
  if (!file_exists(generation_path)) return c;
  const Json generation = read_json_file(generation_path);
  FATHOM_CHECK(generation.is_object(), generation_path, ": must hold a JSON object, got ",
               generation.type_name());
  FieldReader in(generation);
  const Json* eos = in.find({"eos_token_id"});
  if (eos != nullptr) c.eos_token_ids = read_token_ids(in, "eos_token_id", eos, c.vocab_size);
  if (!in.problems().empty()) throw_problems(generation_path, in.problems());
  return c;
}

}  // namespace fathom
