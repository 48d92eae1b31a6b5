#include "fathom/train/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fathom {

double learning_rate(const LrScheduleOptions& o, int64_t step) {
  if (step < o.warmup_steps) {
    return o.lr * static_cast<double>(step + 1) / static_cast<double>(o.warmup_steps);
  }
  const int64_t decay_steps = std::max<int64_t>(1, o.total_steps - 1 - o.warmup_steps);
  const double done =
      std::min(1.0, static_cast<double>(step - o.warmup_steps) / static_cast<double>(decay_steps));
  switch (o.style) {
    case LrDecayStyle::kConstant:
      return o.lr;
    case LrDecayStyle::kLinear:
      return o.lr + (o.min_lr - o.lr) * done;
    case LrDecayStyle::kCosine:
      return o.min_lr + (o.lr - o.min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
  }
  return o.lr;
}

}  // namespace fathom
