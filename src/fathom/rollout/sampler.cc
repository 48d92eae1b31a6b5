#include "fathom/rollout/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "fathom/base/error.h"
#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/rollout/sampler_cpu.h"

namespace fathom {
namespace {

// Below this a quotient of logits could overflow; serving engines draw the same line.
constexpr float kGreedyBelow = 1e-6f;

bool is_greedy(const SamplingParams& p) { return p.temperature < kGreedyBelow; }
bool has_top_k(const SamplingParams& p, int64_t vocab) { return p.top_k > 0 && p.top_k < vocab; }
bool has_top_p(const SamplingParams& p) { return p.top_p < 1.0f; }

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
  const int64_t limit = has_top_k(params, vocab) ? params.top_k : vocab;
  const std::greater<uint64_t> descending;
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

}  // namespace

void Sampler::sample(const ExecContext& ctx, int64_t vocab_size, std::span<const Draw> draws,
                     std::span<DrawnToken> out) {
  FATHOM_ASSERT(draws.size() == out.size(), draws.size(), " draws, ", out.size(), " results");
  const int64_t V = vocab_size, num_draws = static_cast<int64_t>(draws.size());
  bool any_scaled = false, any_filtered = false;
  for (const Draw& d : draws) {
    if (is_greedy(*d.params)) continue;
    any_scaled |= d.params->temperature != 1.0f;
    any_filtered |= has_top_k(*d.params, V) || has_top_p(*d.params);
  }
  const auto grow = [&](auto* buffer) {
    if (buffer->size() < static_cast<size_t>(num_draws * V)) {
      buffer->resize(static_cast<size_t>(num_draws * V));
    }
  };
  if (any_scaled) grow(&scaled_);
  if (any_filtered) grow(&probs_), grow(&sort_keys_), grow(&kept_columns_);

  const auto sample_one = [&](int64_t i) {
    const Draw& draw = draws[static_cast<size_t>(i)];
    const SamplingParams& params = *draw.params;
    const RowScan scan = FATHOM_CPU_DISPATCH(ctx, scan_row, draw.logits, V);
    FATHOM_CHECK(
        scan.all_finite, "sampling: the logits of the token at position ", draw.position,
        " hold NaN or infinity\n  fix: look for broken weights (`fathom inspect`), or for a "
        "training step that diverged");
    const float* z = draw.logits;
    if (!is_greedy(params) && params.temperature != 1.0f) {
      float* scaled = scaled_.data() + i * V;
      FATHOM_CPU_DISPATCH(ctx, divide_row, draw.logits, params.temperature, V, scaled);
      z = scaled;
    }
    const float lse = log_sum_exp(ctx, z, V);
    FATHOM_CHECK(std::isfinite(lse), "sampling: logits divided by temperature ", params.temperature,
                 " overflow at position ", draw.position,
                 "\n  fix: raise the temperature, or use 0");

    int32_t token = scan.argmax;
    if (!is_greedy(params)) {
      const NoiseKey key{draw.seed, draw.position};
      if (has_top_k(params, V) || has_top_p(params)) {
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
    out[static_cast<size_t>(i)] = {token, z[token] - lse};
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
