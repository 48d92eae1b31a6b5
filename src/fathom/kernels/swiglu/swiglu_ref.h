// The equations of swiglu.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// silu(min(g, limit)) * clamp(u, limit) elementwise; limit 0 clamps nothing.
std::vector<double> swiglu_ref(const std::vector<double>& g, const std::vector<double>& u,
                               double limit);

/// out [T, D] = sum over slots of weights * rows + shared (empty: none).
std::vector<double> moe_combine_ref(int64_t T, int64_t K, int64_t D,
                                    const std::vector<double>& rows,
                                    const std::vector<int32_t>& slot_row,
                                    const std::vector<double>& weights,
                                    const std::vector<double>& shared);

}  // namespace fathom
