// Adam with decoupled weight decay, elementwise, fp32. IEEE division and square root.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

struct AdamStep {
  float lr, beta1, beta2, eps, weight_decay;
  float bias_correction1;  // 1 − β1^t, from stored running products
  float bias_correction2;
  float grad_scale;  // clip factor: the gradient is multiplied by it first
};

/// g = grad·grad_scale; m = fma(β1, m, (1−β1)·g); v = fma(β2, v, ((1−β2)·g)·g);
/// step = (m/bc1) / (sqrt(v/bc2) + eps); w = w − lr·(step + weight_decay·w) (as fma chain written
/// in adam_cpu.cc). All arrays [n]; order does not matter.
void adam_update(const ExecContext& ctx, const AdamStep& s, int64_t n, const float* grad, float* w,
                 float* m, float* v);

}  // namespace fathom
