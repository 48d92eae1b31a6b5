// A model for tests of the engine alone: logits are a hash of the whole sequence, which is kept
// where a real model keeps its window, so that a wrong fork or a wrong order shows.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "fathom/base/hash.h"
#include "fathom/rollout/engine.h"

namespace fathom {

/// One layer that needs nothing; end token 1; at most 64 tokens.
inline ModelConfig hash_model_config(int64_t vocab_size) {
  ModelConfig config;
  config.vocab_size = vocab_size;
  config.num_hidden_layers = 1;
  config.compress_ratios = {0};
  config.sliding_window = 1;
  config.head_dim = 1;
  config.num_experts_per_tok = 2;
  config.max_position_embeddings = 64;
  config.eos_token_ids = {1};
  return config;
}

class HistoryHashModel : public StepModel {
 public:
  explicit HistoryHashModel(int64_t vocab_size) : vocab_size_(vocab_size) {}

  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    ++num_steps;
    num_tokens += batch.num_tokens();
    std::vector<uint64_t> hash_of_row;
    for (const Segment& segment : batch.segments) {
      EXPECT_EQ(segment.state->num_tokens(), segment.start_pos);
      float& kept = *reinterpret_cast<float*>(segment.state->layer(0).window.data());
      for (int64_t i = 0; i < segment.num_tokens; ++i) {
        const int32_t id = batch.token_ids[hash_of_row.size()];
        // 24 bits are exact in a float.
        const uint64_t hash = next_hash(static_cast<uint64_t>(kept), id);
        kept = static_cast<float>(hash);
        hash_of_row.push_back(hash);
        if (segment.replay_out != nullptr) {
          segment.replay_out->route_row(segment.start_pos + i, 0)[0] = id;
          segment.replay_out->route_row(segment.start_pos + i, 0)[1] = id + 1;
        }
      }
      segment.state->advance(segment.num_tokens);
    }
    EXPECT_EQ(static_cast<int64_t>(hash_of_row.size()), batch.num_tokens());
    if (rows.empty()) return Tensor();
    Tensor logits = Tensor::empty({static_cast<int64_t>(rows.size()), vocab_size_});
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t v = 0; v < vocab_size_; ++v) {
        logits.f32()[static_cast<int64_t>(r) * vocab_size_ + v] =
            logit(hash_of_row[static_cast<size_t>(rows[r])], v);
      }
    }
    return logits;
  }

  /// An empty sequence has hash 0.
  static uint64_t next_hash(uint64_t hash, int32_t id) {
    return mix64(hash, static_cast<uint64_t>(id)) & 0xFFFFFF;
  }
  static float logit(uint64_t hash, int64_t v) {
    return static_cast<float>(mix64(hash, static_cast<uint64_t>(v)) % 4096) / 1024.0f;
  }

  int64_t num_steps = 0, num_tokens = 0;

 private:
  int64_t vocab_size_;
};

}  // namespace fathom
