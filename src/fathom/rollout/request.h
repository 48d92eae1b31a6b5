// What the engine is asked for, and what it answers.
//
// Example: prompt_ids [0, 5, 9], max_new_tokens 8, seeds {s0, s1} -> two Completions, sample 0 and
// sample 1. If sample 0 draws 7 and then the end token 1: token_ids [7, 1], two log_probs,
// finish_reason kStop, text "<text of 7>".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/base/hash.h"
#include "fathom/model/batch.h"

namespace fathom {

struct SamplingParams {
  float temperature = 1.0f;  // >= 0; 0 takes the largest logit
  float top_p = 1.0f;        // (0, 1]; 1 is off
  int64_t top_k = 0;         // >= 1; 0 and -1 are off
  int64_t max_new_tokens = 128;
  bool ignore_eos = false;                   // the model's end tokens do not end an answer
  std::vector<int32_t> stop_token_ids = {};  // end it too, with or without ignore_eos
  std::vector<std::string> stop = {};        // strings; need EngineOptions::append_token
};

/// One prompt and the answers wanted of it: seeds.size() of them share one prefill.
struct Request {
  std::vector<int32_t> prompt_ids;  // at least one, at most max_position_embeddings
  SamplingParams sampling;
  std::vector<uint64_t> seeds;  // request seed of each sample; see sample_seed
  bool record_replay = false;   // keep routes and indexer picks
};

/// An answer whose last permitted token is a stop token, or completes a stop string, has stopped.
enum class FinishReason { kStop, kLength, kAbort };
std::string_view finish_reason_name(FinishReason reason);  // "stop" | "length" | "abort"

struct Completion {
  int64_t request_id = 0;          // as submit() returned it
  int64_t sample = 0;              // index into Request::seeds
  std::vector<int32_t> token_ids;  // the stop token included
  std::vector<float> log_probs;    // one per token: full vocabulary, sampling temperature (0: 1)
  FinishReason finish_reason = FinishReason::kAbort;
  std::string text;     // with append_token only: without the ending token, cut before a
                        // stop string, broken UTF-8 as U+FFFD
  ReplayRecord replay;  // positions of every token that was fed, prompt included
  int64_t weight_version = 0;
};

/// The request seed of a sample in training: no two samples of a run share noise.
/// @param sample_index run-wide.
inline uint64_t sample_seed(uint64_t rollout_seed, uint64_t sample_index) {
  return mix64(rollout_seed, sample_index);
}

/// Errors: UserError with every value that is out of range.
void check_sampling_params(const SamplingParams& params);

}  // namespace fathom
