// From rewards to advantages, per group of samples of one prompt.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fathom {

enum class AdvantageEstimator { kGrpo };

/// GRPO: r − mean of the group, divided by (sample standard deviation + 1e-6) when `normalize_std`
/// and the deviation is > 0. Deviation with n − 1; a group of one is only mean-subtracted.
/// fp64, sums in order. @return one advantage per sample, the same for all its tokens.
std::vector<double> grpo_advantages(const std::vector<double>& rewards, bool normalize_std);

/// True when the group's rewards differ: the sample standard deviation is > 1e-8.
bool has_reward_spread(const std::vector<double>& rewards);

}  // namespace fathom
