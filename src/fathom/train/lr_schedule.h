// Learning rate by optimizer step.
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

enum class LrDecayStyle { kConstant, kLinear, kCosine };

struct LrScheduleOptions {
  double lr = 1e-6;
  double min_lr = 0.0;
  LrDecayStyle style = LrDecayStyle::kConstant;
  int64_t warmup_steps = 0;
  int64_t total_steps = 1;  // decay ends here
};

/// Rate of 0-based `step`: warm-up is linear from lr/warmup_steps (step 0) to lr; then the style,
/// from lr at the end of the warm-up to min_lr at the last step.
double learning_rate(const LrScheduleOptions& options, int64_t step);

}  // namespace fathom
