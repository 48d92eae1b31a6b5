// Writes config.json in the one form that the hub's readers and transformers both understand.
#include <cmath>
#include <set>

#include "fathom/model/config.h"

namespace fathom {
namespace {

constexpr const char* kSliding = "sliding_attention";
constexpr const char* kCsa = "compressed_sparse_attention";
constexpr const char* kHca = "heavily_compressed_attention";

// Whole numbers are written without a fraction, as the published files have them.
Json plain_number(double x) {
  if (x == std::floor(x) && std::abs(x) < 1e15) return static_cast<int64_t>(x);
  return x;
}

}  // namespace

Json model_config_to_json(const ModelConfig& c, const std::string& torch_dtype) {
  Json j;
  j["architectures"] = {"DeepseekV4ForCausalLM"};
  j["model_type"] = "deepseek_v4";
  j["torch_dtype"] = torch_dtype;
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["moe_intermediate_size"] = c.moe_intermediate_size;
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  j["num_attention_heads"] = c.num_attention_heads;
  j["num_key_value_heads"] = 1;
  j["head_dim"] = c.head_dim;
  j["qk_rope_head_dim"] = c.qk_rope_head_dim;
  j["q_lora_rank"] = c.q_lora_rank;
  j["o_groups"] = c.o_groups;
  j["o_lora_rank"] = c.o_lora_rank;
  j["sliding_window"] = c.sliding_window;
  j["compress_ratios"] = c.compress_ratios;
  std::set<int64_t> hca_ratios;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    if (c.ratio(l) != 0 && c.ratio(l) != 4) hca_ratios.insert(c.ratio(l));
  }
  // transformers knows one heavily compressed ratio; a model with several has no such form.
  if (hca_ratios.size() <= 1) {
    std::vector<std::string> types;
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
      types.push_back(c.ratio(l) == 0 ? kSliding : c.ratio(l) == 4 ? kCsa : kHca);
    }
    j["layer_types"] = types;
    j["compress_rates"][kCsa] = 4;
    j["compress_rates"][kHca] = hca_ratios.empty() ? 128 : *hca_ratios.begin();
  }
  j["num_hash_layers"] = c.num_hash_layers;
  std::vector<std::string> mlp_types;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    mlp_types.push_back(c.is_hash_layer(l) ? "hash_moe" : "moe");
  }
  j["mlp_layer_types"] = mlp_types;
  j["n_routed_experts"] = c.n_routed_experts;
  j["n_shared_experts"] = c.n_shared_experts;
  j["num_experts_per_tok"] = c.num_experts_per_tok;
  j["scoring_func"] = "sqrtsoftplus";
  j["topk_method"] = "noaux_tc";
  j["norm_topk_prob"] = true;
  j["routed_scaling_factor"] = c.routed_scaling_factor;
  j["swiglu_limit"] = c.swiglu_limit;
  j["hidden_act"] = "silu";
  j["hc_mult"] = c.hc_mult;
  j["hc_sinkhorn_iters"] = c.hc_sinkhorn_iters;
  j["hc_eps"] = c.hc_eps;
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["index_n_heads"] = c.index_n_heads;
  j["index_head_dim"] = c.index_head_dim;
  j["index_topk"] = c.index_topk;
  j["rope_theta"] = plain_number(c.rope_theta);
  j["compress_rope_theta"] = plain_number(c.compress_rope_theta);
  if (c.rope_scaling.factor != 1.0) {
    j["rope_scaling"] = {
        {"type", "yarn"},
        {"rope_type", "yarn"},
        {"factor", plain_number(c.rope_scaling.factor)},
        {"beta_fast", plain_number(c.rope_scaling.beta_fast)},
        {"beta_slow", plain_number(c.rope_scaling.beta_slow)},
        {"original_max_position_embeddings", c.rope_scaling.original_max_position_embeddings}};
  } else {
    j["rope_scaling"] = nullptr;
  }
  j["max_position_embeddings"] = c.max_position_embeddings;
  j["attention_bias"] = false;
  j["attention_dropout"] = 0.0;
  j["initializer_range"] = 0.02;
  j["tie_word_embeddings"] = false;
  j["bos_token_id"] = c.bos_token_id;
  if (c.eos_token_ids.size() == 1) {
    j["eos_token_id"] = c.eos_token_ids.front();
  } else if (!c.eos_token_ids.empty()) {
    j["eos_token_id"] = c.eos_token_ids;
  } else {
    j["eos_token_id"] = nullptr;
  }
  j["use_cache"] = true;
  return j;
}

}  // namespace fathom
