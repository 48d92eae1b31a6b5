#include "fathom/kernels/adam/adam_ref.h"

#include <cmath>

namespace fathom {

void adam_ref(const AdamStep& s, const std::vector<double>& grad, std::vector<double>& w,
              std::vector<double>& m, std::vector<double>& v) {
  const double beta1 = s.beta1, beta2 = s.beta2;
  for (size_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * s.grad_scale;
    m[i] = beta1 * m[i] + (1 - beta1) * g;
    v[i] = beta2 * v[i] + (1 - beta2) * g * g;
    const double step = m[i] / s.bias_correction1 / (std::sqrt(v[i] / s.bias_correction2) + s.eps);
    w[i] -= s.lr * (step + s.weight_decay * w[i]);
  }
}

}  // namespace fathom
