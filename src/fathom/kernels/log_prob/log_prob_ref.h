// The equations of log_prob.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

struct LogProbRef {
  std::vector<double> log_probs, lse, entropy;  // [R] each
};

/// hidden [R, D], w row-major [V, D].
LogProbRef log_prob_ref(const std::vector<double>& hidden, const std::vector<double>& w,
                        const std::vector<int32_t>& targets, int64_t D, int64_t V,
                        double temperature);

}  // namespace fathom
