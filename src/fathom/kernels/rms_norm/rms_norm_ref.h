// The equations of rms_norm.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// y [R, N] from x [R, N] and w [N] (empty: no weight).
std::vector<double> rms_norm_ref(int64_t N, double eps, const std::vector<double>& x,
                                 const std::vector<double>& w);

struct RmsNormGradsRef {
  std::vector<double> dx;  // [R, N]
  std::vector<double> dw;  // [N]
};
RmsNormGradsRef rms_norm_bwd_ref(int64_t N, double eps, const std::vector<double>& x,
                                 const std::vector<double>& w, const std::vector<double>& dy);

}  // namespace fathom
