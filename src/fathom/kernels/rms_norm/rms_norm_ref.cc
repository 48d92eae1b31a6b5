#include "fathom/kernels/rms_norm/rms_norm_ref.h"

#include <cmath>

namespace fathom {
namespace {

double inverse_rms(const double* x, int64_t N, double eps) {
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) sum += x[n] * x[n];
  return 1 / std::sqrt(sum / static_cast<double>(N) + eps);
}

}  // namespace

std::vector<double> rms_norm_ref(int64_t N, double eps, const std::vector<double>& x,
                                 const std::vector<double>& w) {
  std::vector<double> y(x.size());
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(N)) {
    const double rho = inverse_rms(&x[row], N, eps);
    for (size_t n = 0; n < static_cast<size_t>(N); ++n) {
      y[row + n] = x[row + n] * rho * (w.empty() ? 1 : w[n]);
    }
  }
  return y;
}

RmsNormGradsRef rms_norm_bwd_ref(int64_t N, double eps, const std::vector<double>& x,
                                 const std::vector<double>& w, const std::vector<double>& dy) {
  const size_t width = static_cast<size_t>(N);
  RmsNormGradsRef grads{std::vector<double>(x.size()), std::vector<double>(width)};
  for (size_t row = 0; row < x.size(); row += width) {
    const double rho = inverse_rms(&x[row], N, eps);
    double sum = 0;
    for (size_t n = 0; n < width; ++n) sum += (w.empty() ? 1 : w[n]) * dy[row + n] * x[row + n];
    for (size_t n = 0; n < width; ++n) {
      const double g = (w.empty() ? 1 : w[n]) * dy[row + n];
      grads.dx[row + n] = rho * g - x[row + n] * rho * rho * rho * sum / static_cast<double>(N);
      grads.dw[n] += dy[row + n] * x[row + n] * rho;
    }
  }
  return grads;
}

}  // namespace fathom
