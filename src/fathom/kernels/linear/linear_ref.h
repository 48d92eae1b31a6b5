// The three products of linear.h in fp64, W row-major.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fathom {

/// y [T, N] = x [T, K] · Wᵀ
std::vector<double> linear_fwd_ref(int64_t T, int64_t N, int64_t K, const std::vector<double>& x,
                                   const std::vector<double>& w);
/// dx [T, K] = dy [T, N] · W
std::vector<double> linear_bwd_input_ref(int64_t T, int64_t N, int64_t K,
                                         const std::vector<double>& dy,
                                         const std::vector<double>& w);
/// dW [N, K] = dyᵀ · x
std::vector<double> linear_bwd_weight_ref(int64_t T, int64_t N, int64_t K,
                                          const std::vector<double>& x,
                                          const std::vector<double>& dy);

}  // namespace fathom
