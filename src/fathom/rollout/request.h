// What the engine is asked for, and what it answers.
//
// Example: prompt_ids [0, 5, 9], max_new_tokens 8, seeds {s0, s1} -> two Completions, sample 0 and
// sample 1. If sample 0 draws 7 and then the end token 1: token_ids [7, 1], two log_probs,
// finish_reason kStop, text "<text of 7>".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
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

  float min_p = 0.0f;          // [0, 1]: drop what is less likely than min_p times the likeliest
  int64_t min_new_tokens = 0;  // before it neither end tokens nor stop_token_ids are drawn
  // Of tokens that the answer holds already (the prompt does not count): see adjust_logits.
  float frequency_penalty = 0.0f;                          // [-2, 2]
  float presence_penalty = 0.0f;                           // [-2, 2]
  float repetition_penalty = 1.0f;                         // [0.001, 2]; 1 is off
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // token id, [-1000, 1000]
};

struct TokenLogProb {
  int32_t token_id;
  float log_prob;
  friend bool operator==(const TokenLogProb&, const TokenLogProb&) = default;
};

/// Which further log-probs are wanted at every position, of answers and of prompts.
struct LogProbLists {
  int64_t num_top = 0;                  // that many of the likeliest tokens
  std::vector<int32_t> token_ids = {};  // and these
};

/// What was asked for, one entry a position. Likeliest first, the lower id first where equal;
/// `listed` in the order of LogProbLists::token_ids. Empty lists where none are wanted.
struct ListedLogProbs {
  std::vector<std::vector<TokenLogProb>> top, listed;
};

/// One prompt and the answers wanted of it: seeds.size() of them share one prefill.
struct Request {
  std::vector<int32_t> prompt_ids;  // at least one, at most max_position_embeddings
  SamplingParams sampling;
  std::vector<uint64_t> seeds;  // request seed of each sample; see sample_seed
  bool record_replay = false;   // keep routes and indexer picks
  LogProbLists lists = {};
  /// When >= 0: log-probs of the prompt's tokens behind this position, at temperature 1. States of
  /// positions above it have to be computed, whatever is cached. With max_new_tokens 0 the prompt
  /// is run for them alone.
  int64_t prompt_log_probs_from = -1;
  int64_t priority = 0;  // higher first; see scheduler.h
};

/// An answer whose last permitted token is a stop token, or completes a stop string, has stopped.
enum class FinishReason { kStop, kLength, kAbort };
std::string_view finish_reason_name(FinishReason reason);  // "stop" | "length" | "abort"

struct Completion {
  int64_t request_id = 0;          // as submit() returned it
  int64_t sample = 0;              // index into Request::seeds
  std::vector<int32_t> token_ids;  // the stop token included
  std::vector<float> log_probs;    // one per token: full vocabulary, sampling temperature (0: 1)
  ListedLogProbs lists;            // of token_ids
  FinishReason finish_reason = FinishReason::kAbort;
  std::string matched_stop;    // the stop string that ended it; empty: another reason
  std::string text;            // with append_token only: without the ending token, cut before a
                               // stop string, broken UTF-8 as U+FFFD
  ReplayRecord replay;         // positions of every token that was fed, prompt included
  int64_t weight_version = 0;  // that drew the last token
  /// Where the weights changed under way: each version with its number of tokens, in order.
  std::vector<std::pair<int64_t, int64_t>> weight_versions;
  int64_t num_cached_tokens = 0;              // of the prompt, not computed for this request
  int64_t num_preemptions = 0;                // times its state was taken away and computed again
  int64_t num_verified = 0;                   // times that guesses were computed
  int64_t num_drafted = 0, num_accepted = 0;  // tokens that speculation guessed, and guessed right
  // Of the prompt's tokens from prompt_log_probs_from + 1 on, where asked for.
  std::vector<float> prompt_log_probs;
  ListedLogProbs prompt_lists;
};

/// The request seed of a sample in training: no two samples of a run share noise.
/// @param sample_index run-wide.
inline uint64_t sample_seed(uint64_t rollout_seed, uint64_t sample_index) {
  return mix64(rollout_seed, sample_index);
}

/// Errors: UserError with every value that is out of range.
void check_sampling_params(const SamplingParams& params);

}  // namespace fathom
