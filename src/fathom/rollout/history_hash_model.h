// A model for tests of the engine alone: logits are a hash of the whole sequence, which is kept
// where a real model keeps its window, and of all entries of the histories, so that a wrong fork, a
// wrong page or a wrong order shows. It drafts too, and is wrong a third of the time.
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

/// Every kind of state: a window of 3, layers with ratios 0, 4, 8 and 4, an MTP module.
inline ModelConfig full_hash_model_config(int64_t vocab_size) {
  ModelConfig config = hash_model_config(vocab_size);
  config.num_hidden_layers = 4;
  config.num_nextn_predict_layers = 1;
  config.compress_ratios = {0, 4, 8, 4, 0};
  config.sliding_window = 3;
  config.head_dim = 2;
  config.index_head_dim = 3;
  config.index_topk = 1;
  config.hidden_size = 2;
  config.hc_mult = 2;
  config.max_position_embeddings = 160;
  return config;
}

class HistoryHashModel : public StepModel {
 public:
  explicit HistoryHashModel(int64_t vocab_size) : vocab_size_(vocab_size) {}
  HistoryHashModel(const ModelConfig& config, uint64_t* weights_salt)
      : vocab_size_(config.vocab_size), config_(config), salt_(weights_salt) {}

  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    ++num_steps;
    num_tokens += batch.num_tokens();
    std::vector<uint64_t> hash_of_row;  // of the sequence, and of everything that it can see
    for (const Segment& segment : batch.segments) {
      EXPECT_EQ(segment.state->num_tokens(), segment.start_pos);
      const StateLayout& layout = segment.state->layout();
      size_t next_checkpoint = 0;
      for (int64_t i = 0; i < segment.num_tokens; ++i) {
        const int64_t position = segment.start_pos + i;
        if (next_checkpoint < segment.checkpoints.size() &&
            segment.checkpoints[next_checkpoint].num_tokens == position) {
          const Checkpoint& checkpoint = segment.checkpoints[next_checkpoint++];
          copy_state_block(segment.state->space(), segment.state->block(), *checkpoint.block);
        }
        const int32_t id = batch.token_ids[hash_of_row.size()];
        const uint64_t before = last_hash(*segment.state, position);
        const uint64_t hash = next_hash(before, id);
        keep(segment.state, position, before, hash);
        hash_of_row.push_back(fold_entries(*segment.state, position, hash));
        if (segment.replay_out != nullptr) record(segment.replay_out, position, id, before);
        if (layout.streams_size > 0) {
          segment.state->block().streams(layout)[0] = static_cast<float>(hash);
        }
      }
      EXPECT_EQ(next_checkpoint, segment.checkpoints.size());
      segment.state->advance(segment.num_tokens);
    }
    EXPECT_EQ(static_cast<int64_t>(hash_of_row.size()), batch.num_tokens());
    if (rows.empty()) return Tensor();
    Tensor logits = Tensor::empty({static_cast<int64_t>(rows.size()), vocab_size_});
    for (size_t r = 0; r < rows.size(); ++r) {
      write_logits(hash_of_row[static_cast<size_t>(rows[r])],
                   logits.f32() + static_cast<int64_t>(r) * vocab_size_);
    }
    return logits;
  }

  bool can_draft() const override { return config_.num_nextn_predict_layers > 0; }

  Tensor draft(std::span<DraftSequence* const> sequences) override {
    Tensor logits = Tensor::empty({static_cast<int64_t>(sequences.size()), vocab_size_});
    for (size_t s = 0; s < sequences.size(); ++s) {
      DraftSequence& d = *sequences[s];
      const int64_t position = d.state->num_tokens() + d.depth;  // of token_id
      const std::span<float> window = window_of(*d.state, config_.num_hidden_layers);
      if (d.depth == 0) {
        d.streams = Tensor::empty({1});
        d.streams.f32()[0] = d.state->block().streams(d.state->layout())[0];
        d.window = Tensor::view(window.data(), {static_cast<int64_t>(window.size())}).clone();
        EXPECT_EQ(static_cast<uint64_t>(d.streams.f32()[0]), last_hash(*d.state, position));
        if (position >= 2) {
          EXPECT_EQ(window[ring_row(position - 2)], window_of(*d.state, 0)[ring_row(position - 2)])
              << "the draft window is behind";
        }
      }
      const uint64_t hash = next_hash(static_cast<uint64_t>(d.streams.f32()[0]), d.token_id);
      d.streams.f32()[0] = static_cast<float>(hash);
      window[ring_row(position - 1)] = -1.0f;  // has to be undone
      // Right as long as no history counts, which the drafter does not see; else by chance.
      const uint64_t seen = hash % 3 == 0 ? hash + 1 : fold_entries(*d.state, position, hash);
      write_logits(seen, logits.f32() + static_cast<int64_t>(s) * vocab_size_);
      ++d.depth;
    }
    return logits;
  }

  void end_draft(std::span<DraftSequence> sequences) override {
    for (DraftSequence& d : sequences) {
      if (d.depth == 0) continue;
      const std::span<float> window = window_of(*d.state, config_.num_hidden_layers);
      std::memcpy(window.data(), d.window.bytes(), window.size_bytes());
    }
  }

  /// An empty sequence has hash 0.
  static uint64_t next_hash(uint64_t hash, int32_t id) {
    return mix64(hash, static_cast<uint64_t>(id)) & 0xFFFFFF;  // 24 bits are exact in a float
  }
  static float logit(uint64_t hash, int64_t v) {
    return static_cast<float>(mix64(hash, static_cast<uint64_t>(v)) % 4096) / 1024.0f;
  }

  /// What step() computes for the last token of a sequence, from its definition.
  std::vector<float> logits_of(const std::vector<int32_t>& tokens) const {
    std::vector<uint64_t> hashes = {0};
    for (const int32_t id : tokens) hashes.push_back(next_hash(hashes.back(), id));
    uint64_t hash = hashes.back();
    for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
      const size_t ratio = static_cast<size_t>(config_.ratio(l));
      for (size_t n = ratio; ratio > 0 && n < hashes.size(); n += ratio) {
        hash = fold(hash, l, hashes[n]);
      }
    }
    std::vector<float> logits(static_cast<size_t>(vocab_size_));
    write_logits(hash, logits.data());
    return logits;
  }

  /// The routes and picks of a position, from their definition.
  static std::vector<int32_t> route_of(int32_t id) { return {id, id + 1}; }
  static int32_t pick_of(uint64_t hash_before) { return static_cast<int32_t>(hash_before % 1000); }

  int64_t num_steps = 0, num_tokens = 0;

 private:
  /// The ring of a layer as the floats that it holds in fp32.
  static std::span<float> window_of(const SequenceState& state, int64_t layer) {
    const std::span<uint8_t> bytes = state.layer(layer).window;
    return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
  }
  size_t ring_row(int64_t position) const {
    return static_cast<size_t>(position % config_.sliding_window * config_.head_dim);
  }
  uint64_t last_hash(const SequenceState& state, int64_t position) const {
    return position == 0 ? 0 : static_cast<uint64_t>(window_of(state, 0)[ring_row(position - 1)]);
  }
  static uint64_t fold(uint64_t hash, int64_t layer, uint64_t entry) {
    return mix64(hash ^ static_cast<uint64_t>(layer), entry);
  }
  void write_logits(uint64_t hash, float* out) const {
    for (int64_t v = 0; v < vocab_size_; ++v) out[v] = logit(hash ^ *salt_, v);
  }

  void keep(SequenceState* state, int64_t position, uint64_t before, uint64_t hash) const {
    const int64_t L = config_.num_hidden_layers;
    for (int64_t l = 0; l < L; ++l) {
      const LayerState layer = state->layer(l);
      window_of(*state, l)[ring_row(position)] = static_cast<float>(hash);
      const int64_t ratio = config_.ratio(l);
      if (ratio == 0) continue;
      // The compressor counts the tokens of its open window.
      const float open = position == 0 ? 0.0f : layer.compressor[0];
      EXPECT_EQ(open, static_cast<float>(position % ratio)) << "at " << position;
      layer.compressor[0] = static_cast<float>((position + 1) % ratio);
      if ((position + 1) % ratio != 0) continue;
      const std::vector<float> entry(static_cast<size_t>(config_.head_dim),
                                     static_cast<float>(hash));
      std::vector<EntryRun> runs, key_runs;
      const EntryFormat& format = state->append_entries(l, 0, 1, &runs);
      encode_entries(format, entry.data(), 1, runs[0].to);
      if (ratio != 4) continue;
      const std::vector<float> key(static_cast<size_t>(config_.index_head_dim),
                                   static_cast<float>(hash + 1));
      const EntryFormat& key_format = state->append_indexer_keys(l, 0, 1, &key_runs);
      encode_entries(key_format, key.data(), 1, key_runs[0].to);
    }
    if (static_cast<int64_t>(state->layout().layers.size()) > L && position > 0) {
      window_of(*state, L)[ring_row(position - 1)] = static_cast<float>(before);
    }
  }

  uint64_t fold_entries(const SequenceState& state, int64_t position, uint64_t hash) const {
    for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
      const int64_t ratio = config_.ratio(l);
      if (ratio == 0) continue;
      const KeyPages pages = state.entry_pages(l);
      const auto at = [](const KeyPages& p, int64_t e, int64_t width) {
        return static_cast<const float*>(p.pages[e / p.entries_per_page]) +
               e % p.entries_per_page * width;
      };
      const int64_t count = std::min((position + 1) / ratio, state.num_entries(l));
      for (int64_t e = 0; e < count; ++e) {
        const float* entry = at(pages, e, config_.head_dim);
        EXPECT_EQ(entry[0], entry[1]);
        hash = fold(hash, l, static_cast<uint64_t>(entry[0]));
        if (ratio == 4) {
          const float* key = at(state.indexer_key_pages(l), e, config_.index_head_dim);
          EXPECT_EQ(key[2], entry[0] + 1.0f);
        }
      }
    }
    return hash;
  }

  void record(ReplayRecord* replay, int64_t position, int32_t id, uint64_t before) const {
    for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
      std::copy_n(route_of(id).data(), 2, replay->route_row(position, l));
    }
    for (int64_t l = 0; l < config_.num_indexer_layers(); ++l) {
      replay->pick_row(position, l)[0] = pick_of(before);
    }
  }

  static constexpr uint64_t kNoSalt = 0;
  int64_t vocab_size_;
  ModelConfig config_ = hash_model_config(vocab_size_);
  const uint64_t* salt_ = &kNoSalt;
};

}  // namespace fathom
