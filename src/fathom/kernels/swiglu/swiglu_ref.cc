#include "fathom/kernels/swiglu/swiglu_ref.h"

#include <algorithm>
#include <cmath>

namespace fathom {

std::vector<double> swiglu_ref(const std::vector<double>& g, const std::vector<double>& u,
                               double limit) {
  std::vector<double> a;
  for (size_t i = 0; i < g.size(); ++i) {
    const double gc = limit > 0 ? std::min(g[i], limit) : g[i];
    const double uc = limit > 0 ? std::clamp(u[i], -limit, limit) : u[i];
    a.push_back(gc / (1 + std::exp(-gc)) * uc);
  }
  return a;
}

std::vector<double> moe_combine_ref(int64_t T, int64_t K, int64_t D,
                                    const std::vector<double>& rows,
                                    const std::vector<int32_t>& slot_row,
                                    const std::vector<double>& weights,
                                    const std::vector<double>& shared) {
  std::vector<double> out(static_cast<size_t>(T * D));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t d = 0; d < D; ++d) {
      double sum = shared.empty() ? 0 : shared[static_cast<size_t>(t * D + d)];
      for (int64_t j = 0; j < K; ++j) {
        const size_t slot = static_cast<size_t>(t * K + j);
        sum += weights[slot] * rows[static_cast<size_t>(slot_row[slot] * D + d)];
      }
      out[static_cast<size_t>(t * D + d)] = sum;
    }
  }
  return out;
}

}  // namespace fathom
