// Adam with decoupled weight decay, elementwise, fp32. IEEE division and square root.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/linear/panel.h"

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

struct NormTensor {
  const float* values;
  int64_t n;                  // elements, without padding
  const PanelLayout* layout;  // of a matrix; null: the values lie one after another
};
/// Squared L2 norm of each tensor in fp64: blocks of 4,096 elements of the row-major tensor, each
/// block a chain upwards, blocks added upwards. Waits for the device.
std::vector<double> squared_norms(const ExecContext& ctx, const std::vector<NormTensor>& tensors);

}  // namespace fathom
