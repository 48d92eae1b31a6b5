// What a DeepSeek-V4 is: sizes and switches, read from any of the three dialects of config.json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/kernels/rope/rope.h"

namespace fathom {

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;               // D
  int64_t num_hidden_layers = 0;         // L, without MTP
  int64_t num_nextn_predict_layers = 0;  // MTP modules
  int64_t num_attention_heads = 0;       // H
  int64_t head_dim = 0;                  // hd, also the latent KV width
  int64_t qk_rope_head_dim = 0;          // rd, the last channels of a head; even, <= head_dim
  int64_t q_lora_rank = 0;
  int64_t o_groups = 0;  // divides H
  int64_t o_lora_rank = 0;
  int64_t sliding_window = 0;            // W, counts the token itself
  std::vector<int64_t> compress_ratios;  // L + MTP entries; 0 none, 4 CSA with indexer, else HCA
  int64_t index_n_heads = 0, index_head_dim = 0, index_topk = 0;
  int64_t n_routed_experts = 0, n_shared_experts = 1, num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0;
  int64_t num_hash_layers = 0;  // the first layers, routed by token id
  double routed_scaling_factor = 1.0;
  double swiglu_limit = 0.0;  // 0: no clamp
  bool clamp_shared_expert = true;
  int64_t hc_mult = 4, hc_sinkhorn_iters = 20;
  double hc_eps = 1e-6, rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;            // ratio-0 layers and MTP
  double compress_rope_theta = 160000.0;  // layers with a ratio
  RopeScaling rope_scaling;               // applied where the ratio is > 0
  int64_t max_position_embeddings = 0;
  int64_t bos_token_id = 0;
  std::vector<int64_t> eos_token_ids;  // may be empty

  int64_t ratio(int64_t layer) const { return compress_ratios[static_cast<size_t>(layer)]; }
  bool is_hash_layer(int64_t layer) const { return layer < num_hash_layers; }
  /// Layers with ratio 4, in order: they carry an indexer.
  int64_t num_indexer_layers() const;
};

/// Channel copies per token of a compressor with this ratio: 2 (overlapping) for 4, else 1.
inline int64_t compressor_coff(int64_t ratio) { return ratio == 4 ? 2 : 1; }

/// Reads config.json of the hub dialect, the original inference dialect or the transformers dialect
/// (spec: sections 1.1, 1.3, 1.4). `deepseek_ref` is accepted as model_type.
/// Errors: UserError that lists every missing, wrong or contradictory field, with `origin` in
/// front.
ModelConfig parse_model_config(const Json& json, const std::string& origin);

/// Reads `directory`/config.json, and the end tokens of generation_config.json when there is one.
ModelConfig load_model_config(const std::string& directory);

/// The hub dialect, plus `layer_types`/`compress_rates`/`mlp_layer_types` so that transformers
/// reads it. No quantization_config.
Json model_config_to_json(const ModelConfig& config, const std::string& torch_dtype);

}  // namespace fathom
