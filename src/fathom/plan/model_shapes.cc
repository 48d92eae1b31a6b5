#include "fathom/plan/model_shapes.h"

#include <algorithm>

#include "fathom/model/named_models.h"

namespace fathom {

ModelConfig tiny_shape() {
  ModelConfig c = named_model("v4flash");  // what all have in common
  c.vocab_size = 64;
  c.hidden_size = 128;
  c.moe_intermediate_size = 64;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 8;
  c.head_dim = 64;
  c.qk_rope_head_dim = 32;
  c.q_lora_rank = 64;
  c.o_groups = 8;
  c.o_lora_rank = 16;
  c.sliding_window = 16;
  c.compress_ratios = {0, 4, 16, 0};
  c.index_n_heads = 4;
  c.index_head_dim = 32;
  c.index_topk = 4;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.routed_scaling_factor = 1.5;
  c.num_hash_layers = 1;
  c.rope_scaling.original_max_position_embeddings = 64;
  c.max_position_embeddings = 1024;
  return c;
}

std::optional<ModelConfig> named_shape(const std::string& name) {
  if (name == "DeepSeek-V4-Flash-FP8" || name == "flash") return named_model("v4flash");
  if (name == "DeepSeek-V4-Flash-FP8-4layer") return named_model("v4flash-4layer");
  if (name == "DeepSeek-V4-Pro-FP8" || name == "pro") return named_model("v4pro");
  if (name == "DeepSeek-V4-Tiny-FP8" || name == "tiny") return tiny_shape();
  const std::vector<std::string>& known = model_names();
  if (std::find(known.begin(), known.end(), name) == known.end()) return std::nullopt;
  return named_model(name);
}

}  // namespace fathom
