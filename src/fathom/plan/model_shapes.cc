#include "fathom/plan/model_shapes.h"

namespace fathom {
namespace {

/// `start`, then `pairs` times (4, 128), then `end`.
std::vector<int64_t> alternating(std::vector<int64_t> start, int64_t pairs,
                                 std::vector<int64_t> end) {
  for (int64_t i = 0; i < pairs; ++i) {
    start.push_back(4);
    start.push_back(128);
  }
  start.insert(start.end(), end.begin(), end.end());
  return start;
}

/// What the released models have in common.
ModelConfig family() {
  ModelConfig c;
  c.vocab_size = 129280;
  c.num_nextn_predict_layers = 1;
  c.head_dim = 512;
  c.qk_rope_head_dim = 64;
  c.o_lora_rank = 1024;
  c.sliding_window = 128;
  c.index_n_heads = 64;
  c.index_head_dim = 128;
  c.num_experts_per_tok = 6;
  c.num_hash_layers = 3;
  c.swiglu_limit = 10.0;
  c.rope_scaling = {
      .factor = 16, .beta_fast = 32, .beta_slow = 1, .original_max_position_embeddings = 65536};
  c.max_position_embeddings = 1048576;
  c.eos_token_ids = {1};
  return c;
}

}  // namespace

ModelConfig flash_shape() {
  ModelConfig c = family();
  c.hidden_size = 4096;
  c.num_hidden_layers = 43;
  c.num_attention_heads = 64;
  c.q_lora_rank = 1024;
  c.o_groups = 8;
  c.index_topk = 512;
  c.n_routed_experts = 256;
  c.moe_intermediate_size = 2048;
  c.routed_scaling_factor = 1.5;
  c.compress_ratios = alternating({0, 0}, 20, {4, 0});
  return c;
}

ModelConfig flash_4_layer_shape() {
  ModelConfig c = flash_shape();
  c.num_hidden_layers = 4;
  c.num_nextn_predict_layers = 0;
  c.compress_ratios = {0, 0, 4, 128};
  return c;
}

ModelConfig pro_shape() {
  ModelConfig c = family();
  c.hidden_size = 7168;
  c.num_hidden_layers = 61;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.o_groups = 16;
  c.index_topk = 1024;
  c.n_routed_experts = 384;
  c.moe_intermediate_size = 3072;
  c.routed_scaling_factor = 2.5;
  c.compress_ratios = alternating({128, 128}, 29, {4, 0});
  return c;
}

ModelConfig tiny_shape() {
  ModelConfig c = family();
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
  if (name == "DeepSeek-V4-Flash-FP8" || name == "flash") return flash_shape();
  if (name == "DeepSeek-V4-Flash-FP8-4layer") return flash_4_layer_shape();
  if (name == "DeepSeek-V4-Pro-FP8" || name == "pro") return pro_shape();
  if (name == "DeepSeek-V4-Tiny-FP8" || name == "tiny") return tiny_shape();
  return std::nullopt;
}

}  // namespace fathom
