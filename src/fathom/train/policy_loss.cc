#include "fathom/train/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "fathom/numerics/scalar_math.h"

namespace fathom {
namespace {

// fp64 exponential through our fp32 one would lose digits; metrics and ratios are formed from a
// difference of two fp32 log-probs, so fp32 exp of that difference is what the precision allows.
double exp_of(double x) { return static_cast<double>(scalar_exp(static_cast<float>(x))); }

}  // namespace

KlValue kl_estimate(KlType type, double lr) {
  switch (type) {
    case KlType::kK1:
      return {lr, 1.0};
    case KlType::kK2:
      return {lr * lr / 2.0, lr};
    case KlType::kK3: {
      const double e = exp_of(-lr);
      return {e - 1.0 + lr, 1.0 - e};
    }
    case KlType::kLowVar: {
      const double clamped = std::clamp(-lr, -20.0, 20.0);
      const double e = exp_of(clamped);
      const double value = e - 1.0 - clamped;
      if (value > 10.0 || value < -10.0) return {std::clamp(value, -10.0, 10.0), 0.0};
      return {value, clamped == -lr ? 1.0 - e : 0.0};
    }
  }
  return {0.0, 0.0};
}

void PolicyMetrics::add(const PolicyMetrics& other) {
  loss += other.loss;
  pg_loss += other.pg_loss;
  entropy += other.entropy;
  pg_clipfrac += other.pg_clipfrac;
  ppo_kl += other.ppo_kl;
  kl_loss += other.kl_loss;
  ess_ratio += other.ess_ratio;
  train_rollout_logprob_abs_diff += other.train_rollout_logprob_abs_diff;
  train_rollout_kl += other.train_rollout_kl;
  num_samples += other.num_samples;
}

PolicyMetrics policy_loss(const PolicyLossOptions& o, const PolicyLossInput& in, float* dlog_probs,
                          float* dentropy) {
  double mask_sum = 0.0;
  for (int64_t i = 0; i < in.n; ++i) mask_sum += in.mask == nullptr ? 1.0 : in.mask[i];
  const double per_token = 1.0 / std::max(1.0, mask_sum);
  PolicyMetrics m;
  m.num_samples = 1;
  double weight_sum = 0.0, weight_square_sum = 0.0;
  for (int64_t i = 0; i < in.n; ++i) {
    dlog_probs[i] = 0.0f;
    if (dentropy != nullptr) dentropy[i] = 0.0f;
    if (in.mask != nullptr && in.mask[i] == 0) continue;
    const double logp = in.log_probs[i];
    const double d = static_cast<double>(in.old_log_probs[i]) - logp;
    const bool inside = d <= 20.0 && d >= -20.0;
    const double ratio = exp_of(std::clamp(-d, -20.0, 20.0));
    const double A = in.advantage;
    const double clipped = std::clamp(ratio, 1.0 - o.eps_clip, 1.0 + o.eps_clip_high);
    const double unclipped_loss = -ratio * A, clipped_loss = -clipped * A;
    double loss = std::max(unclipped_loss, clipped_loss);
    // d ratio / d logp = ratio; the clipped branch is flat unless the ratio is inside the interval.
    double gradient = unclipped_loss >= clipped_loss && inside ? -ratio * A : 0.0;
    if (o.eps_clip_c && A < 0.0 && loss > -*o.eps_clip_c * A) {
      loss = -*o.eps_clip_c * A;
      gradient = 0.0;
    }
    m.pg_loss += loss * per_token;
    m.pg_clipfrac += (clipped_loss > unclipped_loss ? 1.0 : 0.0) * per_token;
    m.ppo_kl += d * per_token;
    weight_sum += ratio;
    weight_square_sum += ratio * ratio;
    double total = loss;
    if (in.entropy != nullptr) {
      m.entropy += in.entropy[i] * per_token;
      total -= o.entropy_coef * in.entropy[i];
      if (dentropy != nullptr) {
        dentropy[i] = static_cast<float>(-o.entropy_coef * per_token / in.num_samples);
      }
    }
    if (in.ref_log_probs != nullptr) {
      const KlValue kl = kl_estimate(o.kl_type, logp - static_cast<double>(in.ref_log_probs[i]));
      m.kl_loss += kl.value * per_token;
      total += o.kl_loss_coef * kl.value;
      gradient += o.kl_loss_coef * kl.gradient;
    }
    if (in.rollout_log_probs != nullptr) {
      const double difference = logp - static_cast<double>(in.rollout_log_probs[i]);
      m.train_rollout_logprob_abs_diff += std::fabs(difference) * per_token;
      m.train_rollout_kl += kl_estimate(KlType::kLowVar, -difference).value * per_token;
    }
    m.loss += total * per_token;
    dlog_probs[i] = static_cast<float>(gradient * per_token / in.num_samples);
  }
  if (weight_square_sum > 0.0) {
    m.ess_ratio = weight_sum * weight_sum / (std::max(1.0, mask_sum) * weight_square_sum);
  }
  return m;
}

}  // namespace fathom
