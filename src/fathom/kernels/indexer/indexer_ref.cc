#include "fathom/kernels/indexer/indexer_ref.h"

#include <algorithm>
#include <numeric>

namespace fathom {

std::vector<double> indexer_scores_ref(int64_t Hi, int64_t di, const std::vector<double>& q,
                                       const std::vector<double>& weights,
                                       const std::vector<double>& keys) {
  std::vector<double> scores(keys.size() / static_cast<size_t>(di));
  for (size_t w = 0; w < scores.size(); ++w) {
    for (int64_t h = 0; h < Hi; ++h) {
      double product = 0;
      for (int64_t d = 0; d < di; ++d) {
        product += q[static_cast<size_t>(h * di + d)] *
                   keys[w * static_cast<size_t>(di) + static_cast<size_t>(d)];
      }
      scores[w] += weights[static_cast<size_t>(h)] * std::max(product, 0.0);
    }
  }
  return scores;
}

std::vector<int32_t> select_topk_ref(const std::vector<double>& scores, int64_t topk) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(topk)));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace fathom
