// Sampling parameters of a request's JSON, as all endpoints read them.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/rollout/request.h"
#include "fathom/server/answer_text.h"
#include "fathom/server/json_fields.h"

namespace fathom {

/// Bounds that keep one request from being very many.
inline constexpr int64_t kMaxPriority = 1'000'000;  // the engine's
inline constexpr int64_t kMaxSamples = 1024;
inline constexpr int64_t kMaxTopLogProbs = 256;
inline constexpr size_t kMaxStops = 64, kMaxStopBytes = 4096, kMaxRidBytes = 256;

/// The fields that are called the same everywhere: temperature, top_p, top_k, min_p, penalties,
/// logit_bias, stop, stop_token_ids, ignore_eos. The number of tokens is the caller's business.
SamplingParams read_sampling(JsonFields& fields, int64_t vocab_size, bool has_tokenizer);

/// skip_special_tokens, no_stop_trim, spaces_between_special_tokens.
TextOptions read_text_options(JsonFields& fields);

/// Seeds of `count` samples: the first one's is `seed` itself, so that asking for more samples does
/// not change it.
std::vector<uint64_t> sample_seeds(uint64_t seed, int64_t count);

}  // namespace fathom
