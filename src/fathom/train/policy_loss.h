// The clipped policy loss of one sample's tokens, its gradient, and the metrics that come with it.
//
//   d = old − logp; ratio = exp(clamp(−d, ±20)); L1 = −ratio·A; L2 = −clip(ratio, 1−ε, 1+ε_high)·A
//   L = max(L1, L2); dual clip for A < 0: L = min(−ε_c·A, L). loss = L − entropy_coef·H +
//   kl_coef·KL.
// Reduction: mean over a sample's unmasked tokens, then sum over samples / N (N: samples of the
// step).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace fathom {

enum class KlType { kK1, kK2, kK3, kLowVar };

struct PolicyLossOptions {
  double eps_clip = 0.2;
  double eps_clip_high = 0.2;
  std::optional<double> eps_clip_c;  // dual clip, > 1
  double entropy_coef = 0.0;
  double kl_loss_coef = 0.0;  // against reference log-probs, when given
  KlType kl_type = KlType::kK1;
};

/// Token arrays of one sample, [n] response tokens each.
struct PolicyLossInput {
  const float* log_probs;          // of this forward
  const float* old_log_probs;      // the policy the ratio is taken against
  const float* rollout_log_probs;  // what decode reported
  const float* ref_log_probs;      // or null: no KL to a reference
  const float* entropy;            // or null
  const uint8_t* mask;             // or null: all ones
  int64_t n;
  double advantage;
  double num_samples;  // N of the whole step
};

/// Sums over samples; divide by N at the end of the step (all but the counts).
struct PolicyMetrics {
  double loss = 0, pg_loss = 0, entropy = 0, pg_clipfrac = 0, ppo_kl = 0, kl_loss = 0;
  double ess_ratio = 0;
  double train_rollout_logprob_abs_diff = 0, train_rollout_kl = 0;
  int64_t num_samples = 0;  // that were run forward
  void add(const PolicyMetrics& other);
};

/// @param dlog_probs [n] written: d loss / d logp of each token.
/// @param dentropy [n] written when not null.
PolicyMetrics policy_loss(const PolicyLossOptions& options, const PolicyLossInput& in,
                          float* dlog_probs, float* dentropy);

/// KL estimate per token from lr = logp − logp_base, and its derivative by logp.
struct KlValue {
  double value, gradient;
};
KlValue kl_estimate(KlType type, double log_ratio);

}  // namespace fathom
