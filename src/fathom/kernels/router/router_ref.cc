#include "fathom/kernels/router/router_ref.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fathom {

std::vector<double> router_scores_ref(const std::vector<double>& logits) {
  std::vector<double> scores;
  for (const double z : logits) {
    scores.push_back(std::sqrt(std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z)))));
  }
  return scores;
}

std::vector<int32_t> router_topk_ref(const std::vector<double>& scores,
                                     const std::vector<double>& bias, int64_t K) {
  std::vector<double> keys = scores;
  for (size_t e = 0; e < bias.size(); ++e) keys[e] += bias[e];
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(K));
  return order;
}

std::vector<double> router_weights_ref(const std::vector<double>& logits,
                                       const std::vector<int32_t>& idx, double scaling) {
  const std::vector<double> scores = router_scores_ref(logits);
  double sum = 0;
  for (const int32_t e : idx) sum += scores[static_cast<size_t>(e)];
  std::vector<double> weights;
  for (const int32_t e : idx) {
    weights.push_back(scores[static_cast<size_t>(e)] / (sum + 1e-20) * scaling);
  }
  return weights;
}

}  // namespace fathom
