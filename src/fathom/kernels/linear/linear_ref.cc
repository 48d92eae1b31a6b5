#include "fathom/kernels/linear/linear_ref.h"

namespace fathom {

std::vector<double> linear_fwd_ref(int64_t T, int64_t N, int64_t K, const std::vector<double>& x,
                                   const std::vector<double>& w) {
  std::vector<double> y(static_cast<size_t>(T * N));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      double& sum = y[static_cast<size_t>(t * N + n)];
      for (int64_t k = 0; k < K; ++k) {
        sum += x[static_cast<size_t>(t * K + k)] * w[static_cast<size_t>(n * K + k)];
      }
    }
  }
  return y;
}

std::vector<double> linear_bwd_input_ref(int64_t T, int64_t N, int64_t K,
                                         const std::vector<double>& dy,
                                         const std::vector<double>& w) {
  std::vector<double> dx(static_cast<size_t>(T * K));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        dx[static_cast<size_t>(t * K + k)] +=
            dy[static_cast<size_t>(t * N + n)] * w[static_cast<size_t>(n * K + k)];
      }
    }
  }
  return dx;
}

std::vector<double> linear_bwd_weight_ref(int64_t T, int64_t N, int64_t K,
                                          const std::vector<double>& x,
                                          const std::vector<double>& dy) {
  std::vector<double> dw(static_cast<size_t>(N * K));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        dw[static_cast<size_t>(n * K + k)] +=
            dy[static_cast<size_t>(t * N + n)] * x[static_cast<size_t>(t * K + k)];
      }
    }
  }
  return dw;
}

}  // namespace fathom
