#include "fathom/kernels/log_prob/log_prob_ref.h"

#include <algorithm>
#include <cmath>

namespace fathom {

LogProbRef log_prob_ref(const std::vector<double>& hidden, const std::vector<double>& w,
                        const std::vector<int32_t>& targets, int64_t D, int64_t V,
                        double temperature) {
  LogProbRef out;
  for (size_t r = 0; r < targets.size(); ++r) {
    std::vector<double> z(static_cast<size_t>(V));
    for (size_t n = 0; n < z.size(); ++n) {
      for (size_t k = 0; k < static_cast<size_t>(D); ++k) {
        z[n] += hidden[r * static_cast<size_t>(D) + k] * w[n * static_cast<size_t>(D) + k];
      }
      z[n] /= temperature;
    }
    const double best = *std::max_element(z.begin(), z.end());
    double sum = 0, entropy = 0;
    for (const double v : z) sum += std::exp(v - best);
    const double lse = best + std::log(sum);
    for (const double v : z) entropy -= std::exp(v - lse) * (v - lse);
    out.log_probs.push_back(z[static_cast<size_t>(targets[r])] - lse);
    out.lse.push_back(lse);
    out.entropy.push_back(entropy);
  }
  return out;
}

}  // namespace fathom
