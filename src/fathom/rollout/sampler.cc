#include "fathom/rollout/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "fathom/base/error.h"
#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/rollout/sampler_cpu.h"

namespace fathom {
namespace {

// Below this a quotient of logits could overflow; serving engines draw the same line.
constexpr float kGreedyBelow = 1e-6f;

// A logit that no temperature makes infinite, and whose probability is 0.
constexpr float kForbidden = -1e30f;

bool is_greedy(const SamplingParams& p) { return p.temperature < kGreedyBelow; }
bool has_top_k(const SamplingParams& p, int64_t vocab) { return p.top_k > 0 && p.top_k < vocab; }
bool has_top_p(const SamplingParams& p) { return p.top_p < 1.0f; }
bool has_filter(const SamplingParams& p, int64_t vocab) {
  return has_top_k(p, vocab) || has_top_p(p) || p.min_p > 0;
}

/// Sorts as (probability descending, column ascending). Probabilities are >= +0, so their bits
/// order as they do.
uint64_t sort_key(float probability, int64_t column) {
  return (static_cast<uint64_t>(std::bit_cast<uint32_t>(probability)) << 32) |
         (0xFFFFFFFFu - static_cast<uint32_t>(column));
}
int32_t column_of(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key));
}
float probability_of(uint64_t key) {
  return std::bit_cast<float>(static_cast<uint32_t>(key >> 32));
}

/// Moves the kept columns' keys to the front, in any order. @return how many there are.
int64_t keep_columns(const SamplingParams& params, uint64_t* keys, int64_t vocab) {
  const std::greater<uint64_t> descending;
  if (params.min_p > 0) {
    const double least = static_cast<double>(params.min_p) *
                         static_cast<double>(probability_of(*std::max_element(keys, keys + vocab)));
    vocab = std::partition(
                keys, keys + vocab,
                [&](uint64_t key) { return static_cast<double>(probability_of(key)) >= least; }) -
            keys;
  }
  const int64_t limit = has_top_k(params, vocab) ? params.top_k : vocab;
  if (!has_top_p(params)) {
    if (limit < vocab) std::nth_element(keys, keys + limit, keys + vocab, descending);
    return limit;
  }
  // Most mass sits in few columns: sort a growing head until it is enough.
  double before = 0;
  int64_t sorted = 0;
  for (int64_t head = 64; sorted < limit; head *= 4) {
    const int64_t end = std::min(limit, head);
    std::partial_sort(keys + sorted, keys + end, keys + vocab, descending);
    for (; sorted < end; ++sorted) {
      if (before > static_cast<double>(params.top_p)) return sorted;
      before += static_cast<double>(probability_of(keys[sorted]));
    }
  }
  return limit;
}

/// @param z logits at the temperature that log-probs are told at, lse their log_sum_exp.
void fill_lists(const float* z, float lse, int64_t vocab, const LogProbLists& lists,
                DrawnToken* token) {
  const int64_t num_top = std::min(lists.num_top, vocab);
  if (num_top > 0) {
    std::vector<int32_t> columns(static_cast<size_t>(vocab));
    std::iota(columns.begin(), columns.end(), 0);
    std::partial_sort(columns.begin(), columns.begin() + num_top, columns.end(),
                      [&](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
    for (int64_t i = 0; i < num_top; ++i) {
      const int32_t id = columns[static_cast<size_t>(i)];
      token->top.push_back({id, z[id] - lse});
    }
  }
  for (const int32_t id : lists.token_ids) token->listed.push_back({id, z[id] - lse});
}

void check_finite(bool all_finite, int64_t position) {
  FATHOM_CHECK(all_finite, "sampling: the logits of the token at position ", position,
               " hold NaN or infinity\n  fix: look for broken weights (`fathom inspect`), or for a "
               "training step that diverged");
}

}  // namespace

bool adjusts_logits(const Draw& draw) {
  const SamplingParams& p = *draw.params;
  const bool penalises =
      p.frequency_penalty != 0 || p.presence_penalty != 0 || p.repetition_penalty != 1;
  return (penalises && !draw.generated.empty()) || !p.logit_bias.empty() || !draw.forbidden.empty();
}

void adjust_logits(const Draw& draw, int64_t vocab_size, float* out) {
  const SamplingParams& p = *draw.params;
  std::copy(draw.logits, draw.logits + vocab_size, out);
  std::vector<int32_t> ids(draw.generated.begin(), draw.generated.end());
  std::sort(ids.begin(), ids.end());
  for (size_t i = 0; i < ids.size();) {
    const size_t first = i;
    while (i < ids.size() && ids[i] == ids[first]) ++i;
    float& z = out[ids[first]];
    z = (z - p.frequency_penalty * static_cast<float>(i - first)) - p.presence_penalty;
    z = z > 0 ? z / p.repetition_penalty : z * p.repetition_penalty;
  }
  const auto in_vocabulary = [&](int32_t id) { return id >= 0 && id < vocab_size; };
  for (const auto& [id, bias] : p.logit_bias) {
    if (in_vocabulary(id)) out[id] += bias;
  }
  for (const int32_t id : draw.forbidden) {
    if (in_vocabulary(id)) out[id] = kForbidden;
  }
}

DrawnToken score_token(const ExecContext& ctx, const float* logits, int64_t vocab_size,
                       int32_t token_id, const LogProbLists& lists) {
  check_finite(FATHOM_CPU_DISPATCH(ctx, scan_row, logits, vocab_size).all_finite, token_id);
  const float lse = log_sum_exp(ctx, logits, vocab_size);
  DrawnToken token{token_id, logits[token_id] - lse};
  fill_lists(logits, lse, vocab_size, lists, &token);
  return token;
}

void Sampler::sample(const ExecContext& ctx, int64_t vocab_size, std::span<const Draw> draws,
                     std::span<DrawnToken> out) {
  FATHOM_ASSERT(draws.size() == out.size(), draws.size(), " draws, ", out.size(), " results");
  const int64_t V = vocab_size, num_draws = static_cast<int64_t>(draws.size());
  bool any_adjusted = false, any_scaled = false, any_filtered = false;
  for (const Draw& d : draws) {
    any_adjusted |= adjusts_logits(d);
    if (is_greedy(*d.params)) continue;
    any_scaled |= d.params->temperature != 1.0f;
    any_filtered |= has_filter(*d.params, V);
  }
  const auto grow = [&](auto* buffer) {
    if (buffer->size() < static_cast<size_t>(num_draws * V)) {
      buffer->resize(static_cast<size_t>(num_draws * V));
    }
  };
  if (any_adjusted) grow(&adjusted_);
  if (any_scaled) grow(&scaled_);
  if (any_filtered) grow(&probs_), grow(&sort_keys_), grow(&kept_columns_);

  const auto sample_one = [&](int64_t i) {
    const Draw& draw = draws[static_cast<size_t>(i)];
    const SamplingParams& params = *draw.params;
    RowScan scan = FATHOM_CPU_DISPATCH(ctx, scan_row, draw.logits, V);
    check_finite(scan.all_finite, draw.position);
    const float* z = draw.logits;
    if (adjusts_logits(draw)) {
      float* adjusted = adjusted_.data() + i * V;
      adjust_logits(draw, V, adjusted);
      z = adjusted;
      scan = FATHOM_CPU_DISPATCH(ctx, scan_row, z, V);
    }
    if (!is_greedy(params) && params.temperature != 1.0f) {
      float* scaled = scaled_.data() + i * V;
      FATHOM_CPU_DISPATCH(ctx, divide_row, z, params.temperature, V, scaled);
      z = scaled;
    }
    const float lse = log_sum_exp(ctx, z, V);
    FATHOM_CHECK(std::isfinite(lse), "sampling: logits divided by temperature ", params.temperature,
                 " overflow at position ", draw.position,
                 "\n  fix: raise the temperature, or use 0");

    int32_t token = scan.argmax;
    if (!is_greedy(params)) {
      const NoiseKey key{draw.seed, draw.position};
      if (has_filter(params, V)) {
        float* probs = probs_.data() + i * V;
        uint64_t* keys = sort_keys_.data() + i * V;
        FATHOM_CPU_DISPATCH(ctx, probability_row, z, lse, V, probs);
        for (int64_t c = 0; c < V; ++c) keys[c] = sort_key(probs[c], c);
        const int64_t num_kept = keep_columns(params, keys, V);
        int32_t* columns = kept_columns_.data() + i * V;
        for (int64_t k = 0; k < num_kept; ++k) columns[k] = column_of(keys[k]);
        token = FATHOM_CPU_DISPATCH(ctx, noisy_argmax_of, z, columns, num_kept, key);
      } else {
        token = FATHOM_CPU_DISPATCH(ctx, noisy_argmax, z, V, key, scan.argmax);
      }
    }
    DrawnToken& result = out[static_cast<size_t>(i)];
    result = {token, z[token] - lse};
    if (draw.lists != nullptr) fill_lists(z, lse, V, *draw.lists, &result);
  };
  // A range is worth a thread from some ten thousand columns on.
  const int64_t grain = std::max<int64_t>(1, 16384 / V);
  ctx.threads->parallel_for(num_draws, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sample_one(i);
  });
}

void gumbel_noise(const ExecContext& ctx, uint64_t seed, int64_t position, int64_t first_column,
                  int64_t count, float* out) {
  const NoiseKey key{seed, position};
  FATHOM_CPU_DISPATCH(ctx, noise_row, key, first_column, count, out);
}

}  // namespace fathom
