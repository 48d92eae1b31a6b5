// A small model with every kind of layer and tensor, for tests.
#pragma once

#include <bit>
#include <cstdint>

#include "fathom/base/hash.h"
#include "fathom/model/weights.h"

namespace fathom {

// Every kind of layer: none, ratio 4 with indexer, a large ratio; hash and biased routing; MTP.
inline ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 48;
  c.hidden_size = 32;
  c.num_hidden_layers = 4;
  c.num_nextn_predict_layers = 1;
  c.num_attention_heads = 4;
  c.head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.q_lora_rank = 24;
  c.o_groups = 2;
  c.o_lora_rank = 8;
  c.sliding_window = 8;
  c.compress_ratios = {0, 0, 4, 8, 0};
  c.index_n_heads = 2;
  c.index_head_dim = 16;
  c.index_topk = 4;
  c.n_routed_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 20;
  c.num_hash_layers = 1;
  return c;
}

/// Memory for every parameter, filled with values that depend on the seed and the element alone.
inline void fill_weights(Weights& weights, uint64_t seed) {
  uint64_t index = 0;
  for_each_parameter(weights, [&](Parameter& p) {
    p.alloc();
    std::vector<float> values(static_cast<size_t>(p.numel()));
    for (float& v : values) {
      v = static_cast<float>(static_cast<int64_t>(mix64(seed, index++) >> 40) - (1 << 23)) * 1e-7f;
    }
    if (p.kind != ParameterKind::kTable) return p.set_row_major(values.data());
    for (int64_t i = 0; i < p.numel(); ++i) {
      const uint64_t expert = mix64(seed, index++) % 4;
      p.master.i32()[i] = static_cast<int32_t>(expert);
    }
  });
}

}  // namespace fathom
