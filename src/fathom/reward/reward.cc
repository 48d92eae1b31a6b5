#include "fathom/reward/reward.h"

#include "fathom/base/error.h"
#include "fathom/reward/math_grader.h"

namespace fathom {

RewardType parse_reward_type(const std::string& name) {
  if (name == "math") return RewardType::kMath;
  throw ConfigError(str_cat("--rm-type: unknown reward \"", name, "\"\n  fix: use math"));
}

double compute_reward(RewardType type, const std::string& response, const std::string& label) {
  switch (type) {
    case RewardType::kMath:
      return math_answer_is_correct(response, label) ? 1.0 : 0.0;
  }
  throw InternalError("unknown reward type");
}

}  // namespace fathom
