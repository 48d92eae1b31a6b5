#include "fathom/train/advantage.h"

#include <cmath>

namespace fathom {
namespace {

double mean_of(const std::vector<double>& values) {
  double sum = 0.0;
  for (double v : values) sum += v;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

double sample_std(const std::vector<double>& values) {
  if (values.size() < 2) return 0.0;
  const double mean = mean_of(values);
  double sum = 0.0;
  for (double v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

}  // namespace

std::vector<double> grpo_advantages(const std::vector<double>& rewards, bool normalize_std) {
  const double mean = mean_of(rewards), deviation = sample_std(rewards);
  std::vector<double> advantages;
  for (double r : rewards) {
    double a = r - mean;
    if (normalize_std && deviation > 0.0) a /= deviation + 1e-6;
    advantages.push_back(a);
  }
  return advantages;
}

bool has_reward_spread(const std::vector<double>& rewards) { return sample_std(rewards) > 1e-8; }

}  // namespace fathom
