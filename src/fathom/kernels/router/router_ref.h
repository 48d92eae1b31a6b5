// The equations of router.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// sqrt(softplus(z)) elementwise.
std::vector<double> router_scores_ref(const std::vector<double>& logits);

/// Top-k of score + bias of one token, larger first, then the lower id. An empty bias is zero.
std::vector<int32_t> router_topk_ref(const std::vector<double>& scores,
                                     const std::vector<double>& bias, int64_t K);

/// w_j = s[idx_j] / (sum + 1e-20) * scaling of one token's logits.
std::vector<double> router_weights_ref(const std::vector<double>& logits,
                                       const std::vector<int32_t>& idx, double scaling);

}  // namespace fathom
