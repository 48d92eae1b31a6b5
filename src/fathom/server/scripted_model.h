// A model and a tokenizer for tests of the server: answers that a script prescribes, and random
// ones to all other prompts.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fathom/base/hash.h"
#include "fathom/base/json.h"
#include "fathom/model/sequence_state.h"
#include "fathom/rollout/engine.h"
#include "fathom/tokenizer/byte_level.h"
#include "fathom/tokenizer/chat_tokens.h"
#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

/// One token a byte (ids 3 to 258), then the chat markers. BOS 0, end 1, padding 2.
inline Tokenizer make_byte_tokenizer() {
  Json vocab = Json::object(), added = Json::array();
  const auto add = [&](std::string_view text, int id, bool special) {
    added.push_back({{"id", id},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", special}});
  };
  add(chat_tokens::kBos, 0, true);
  add(chat_tokens::kEos, 1, true);
  add("<pad>", 2, true);
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    vocab[spell_token_bytes({&c, 1})] = 3 + byte;
  }
  int id = 259;
  for (const std::string_view marker :
       {chat_tokens::kUser, chat_tokens::kAssistant, chat_tokens::kThinkStart,
        chat_tokens::kThinkEnd, chat_tokens::kDsml, chat_tokens::kLatestReminder}) {
    add(marker, id++, false);
  }
  const Json json{
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"added_tokens", added}};
  return Tokenizer::from_json(json.dump(), "the byte tokenizer", {.bos = 0, .eos = {1}});
}
inline constexpr int64_t kByteVocab = 265;

/// One layer without compression; every logit follows from a hash of the whole sequence, which is
/// kept where a real model keeps its window.
inline ModelConfig scripted_model_config(int64_t vocab_size = kByteVocab) {
  ModelConfig config;
  config.vocab_size = vocab_size;
  config.num_hidden_layers = 1;
  config.compress_ratios = {0};
  config.sliding_window = 1;
  config.head_dim = 1;
  config.num_experts_per_tok = 2;
  config.max_position_embeddings = 4096;
  config.eos_token_ids = {1};
  return config;
}

/// What scripts of several models may share; filled before the engine runs.
struct Script {
  std::map<uint64_t, int32_t> next_token;  // by hash of the sequence
  std::chrono::microseconds delay{0};      // of every step

  /// @param answer without the end token, which comes behind it.
  void add(const std::vector<int32_t>& prompt, std::vector<int32_t> answer) {
    uint64_t hash = 0;
    for (const int32_t id : prompt) hash = next_hash(hash, id);
    answer.push_back(1);
    for (const int32_t id : answer) {
      next_token[hash] = id;
      hash = next_hash(hash, id);
    }
  }
  static uint64_t next_hash(uint64_t hash, int32_t id) {
    return mix64(hash, static_cast<uint64_t>(id)) & 0xFFFFFF;  // 24 bits are exact in a float
  }
  /// The row behind a sequence.
  void write_logits(uint64_t hash, int64_t vocab_size, float* out) const {
    for (int64_t v = 0; v < vocab_size; ++v) {
      out[v] = static_cast<float>(mix64(hash, static_cast<uint64_t>(v)) % 4096) / 1024.0f;
    }
    const auto found = next_token.find(hash);
    if (found != next_token.end()) out[found->second] = 60.0f;
  }
};

class ScriptedModel : public StepModel {
 public:
  ScriptedModel(int64_t vocab_size, std::shared_ptr<const Script> script)
      : vocab_size_(vocab_size), script_(std::move(script)) {}

  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    std::this_thread::sleep_for(script_->delay);
    std::vector<uint64_t> hash_of_row;
    for (const Segment& segment : batch.segments) {
      auto* kept = reinterpret_cast<float*>(segment.state->layer(0).window.data());
      size_t next_checkpoint = 0;
      for (int64_t i = 0; i < segment.num_tokens; ++i) {
        if (next_checkpoint < segment.checkpoints.size() &&
            segment.checkpoints[next_checkpoint].num_tokens == segment.start_pos + i) {
          copy_state_block(segment.state->space(), segment.state->block(),
                           *segment.checkpoints[next_checkpoint++].block);
        }
        const int32_t id = batch.token_ids[hash_of_row.size()];
        const uint64_t before = segment.start_pos + i == 0 ? 0 : static_cast<uint64_t>(*kept);
        const uint64_t hash = Script::next_hash(before, id);
        *kept = static_cast<float>(hash);
        hash_of_row.push_back(hash);
        if (segment.replay_out != nullptr) {
          int32_t* route = segment.replay_out->route_row(segment.start_pos + i, 0);
          route[0] = id;
          route[1] = id + 1;
        }
      }
      segment.state->advance(segment.num_tokens);
    }
    if (rows.empty()) return Tensor();
    Tensor logits = Tensor::empty({static_cast<int64_t>(rows.size()), vocab_size_});
    for (size_t r = 0; r < rows.size(); ++r) {
      script_->write_logits(hash_of_row[static_cast<size_t>(rows[r])], vocab_size_,
                            logits.f32() + static_cast<int64_t>(r) * vocab_size_);
    }
    return logits;
  }

 private:
  int64_t vocab_size_;
  std::shared_ptr<const Script> script_;
};

}  // namespace fathom
