// The equations of hyper_connection.h in fp64, as plain as they can be written.
#pragma once

#include <vector>

#include "fathom/kernels/hyper_connection/hyper_connection.h"

namespace fathom {

struct HcRefWeights {
  std::vector<double> fn;     // row-major [(2+M)*M, M*D]; head: [M, M*D]
  std::vector<double> base;   // [(2+M)*M]; head: [M]
  std::vector<double> scale;  // [3]; head: [1]
};

struct HcPreRef {
  std::vector<double> y, post, comb;  // [T, D], [T, M], [T, M, M]
};
HcPreRef hc_pre_ref(const HcShape& s, const HcRefWeights& w, const std::vector<double>& x);

/// out [T, M, D]
std::vector<double> hc_post_ref(const HcShape& s, const std::vector<double>& x,
                                const std::vector<double>& f, const std::vector<double>& post,
                                const std::vector<double>& comb);

/// h [T, D]
std::vector<double> hc_head_ref(const HcShape& s, const HcRefWeights& w,
                                const std::vector<double>& x);

}  // namespace fathom
