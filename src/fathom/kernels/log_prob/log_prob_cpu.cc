#include "fathom/kernels/log_prob/log_prob_cpu.h"

#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/numerics/row_ops.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

/// The last, shorter group of a row: lanes beyond `count` become zero.
inline F16 keep_first(F16 a, int64_t count) { return select(first_lanes(count), a, zero()); }

template <bool kWithEntropy>
inline SoftmaxStats stats_below(const float* z, int64_t n, float best) {
  const F16 m = set1(best);
  F16 sum = zero(), weighted = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F16 x = sub(load(z + i), m);
    const F16 e = exp(x);
    sum = add(sum, e);
    if constexpr (kWithEntropy) weighted = fma(x, e, weighted);
  }
  if (i < n) {
    const F16 x = keep_first(sub(load_first(z + i, n - i), m), n - i);
    const F16 e = keep_first(exp(x), n - i);
    sum = add(sum, e);
    if constexpr (kWithEntropy) weighted = fma(x, e, weighted);
  }
  return {best, reduce_add(sum), reduce_add(weighted)};
}

/// d(loss)/dz of logits that are not the target.
inline F16 logit_gradient(F16 z, F16 lse, F16 dlogp, F16 dentropy, F16 entropy, bool with_entropy) {
  const F16 logp = sub(z, lse);
  const F16 p = exp(logp);
  F16 g = sub(zero(), mul(dlogp, p));
  if (with_entropy) g = fnma(mul(dentropy, p), add(logp, entropy), g);
  return g;
}

}  // namespace

SoftmaxStats softmax_stats(const float* z, int64_t n, bool with_entropy) {
  const float best = row_max(z, n);
  // All logits -inf: nothing to add (and exp(-inf - -inf) would be NaN).
  if (best == kMinusInfinity) return {kMinusInfinity, 0, 0};
  return with_entropy ? stats_below<true>(z, n, best) : stats_below<false>(z, n, best);
}

SoftmaxStats merge_softmax_stats(const SoftmaxStats& a, const SoftmaxStats& b) {
  if (a.max == kMinusInfinity) return b;
  if (b.max == kMinusInfinity) return a;
  const float m = b.max > a.max ? b.max : a.max;
  const float da = a.max - m, db = b.max - m;  // one of them is 0, and e^0 is exactly 1
  const float e = exp1(da + db);
  const float ea = b.max > a.max ? e : 1, eb = b.max > a.max ? 1 : e;
  const float sum = __builtin_fmaf(a.sum, ea, b.sum * eb);
  // Shifting the maximum by d turns s into e^d (s + d l).
  const float wa = __builtin_fmaf(da, a.sum, a.weighted);
  const float wb = __builtin_fmaf(db, b.sum, b.weighted);
  return {m, sum, __builtin_fmaf(wa, ea, wb * eb)};
}

float log_sum_exp_of(const SoftmaxStats& s) { return s.max + log1(s.sum); }

float entropy_of(const SoftmaxStats& s) { return log1(s.sum) - s.weighted / s.sum; }

void divide_by_temperature(float* z, int64_t n, float temperature) {
  const F16 t = set1(temperature);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(z + i, div(load(z + i), t));
  if (i < n) store_first(z + i, div(load_first(z + i, n - i), t), n - i);
}

void logit_gradient_row(const LogitBlock& block, const LogProbRowGrads& g, int64_t row, int64_t r) {
  float* z = block.z + row * block.stride;
  const int64_t n = block.num_columns;
  if (block.temperature != 1) divide_by_temperature(z, n, block.temperature);

  const bool with_entropy = g.dentropy != nullptr;
  const float dlogp = g.dlog_probs[r];
  const float dentropy = with_entropy ? g.dentropy[r] : 0;
  const float entropy = with_entropy ? g.entropy[r] : 0;
  const int64_t y = g.targets[r] - block.first_column;
  float at_target = 0;
  if (y >= 0 && y < n) {
    const float logp = z[y] - g.lse[r];
    const float p = exp1(logp);
    at_target = dlogp * (1 - p);
    if (with_entropy) at_target = __builtin_fmaf(-(dentropy * p), logp + entropy, at_target);
    at_target /= block.temperature;
  }
  const F16 lse = set1(g.lse[r]), vp = set1(dlogp), vd = set1(dentropy), vh = set1(entropy);
  const F16 t = set1(block.temperature);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(z + i, div(logit_gradient(load(z + i), lse, vp, vd, vh, with_entropy), t));
  }
  if (i < n) {
    const F16 d = logit_gradient(load_first(z + i, n - i), lse, vp, vd, vh, with_entropy);
    store_first(z + i, div(d, t), n - i);
  }
  if (y >= 0 && y < n) z[y] = at_target;
}

}  // namespace FATHOM_ISA
}  // namespace fathom
