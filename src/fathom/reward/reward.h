// Rewards by name (--rm-type).
#pragma once

#include <string>
#include <vector>

namespace fathom {

enum class RewardType { kMath };

/// Errors: ConfigError naming the known types.
RewardType parse_reward_type(const std::string& name);

/// Reward of one finished response. Deterministic, no state.
/// kMath: 1 when the last boxed answer equals the label (math_grader.h), else 0.
double compute_reward(RewardType type, const std::string& response, const std::string& label);

}  // namespace fathom
