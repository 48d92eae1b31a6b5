// y = x Wᵀ and its gradients in fp64, row-major, the plainest way.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// x [T, K], w [N, K] -> y [T, N].
std::vector<double> linear_ref(const std::vector<double>& x, const std::vector<double>& w,
                               int64_t T, int64_t N, int64_t K);
/// dy [T, N], w [N, K] -> dx [T, K].
std::vector<double> linear_bwd_input_ref(const std::vector<double>& dy,
                                         const std::vector<double>& w, int64_t T, int64_t N,
                                         int64_t K);
/// dy [T, N], x [T, K] -> dw [N, K].
std::vector<double> linear_bwd_weight_ref(const std::vector<double>& dy,
                                          const std::vector<double>& x, int64_t T, int64_t N,
                                          int64_t K);

}  // namespace fathom
