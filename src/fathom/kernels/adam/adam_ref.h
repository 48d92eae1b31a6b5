// The equations of adam.h in fp64.
#pragma once

#include <vector>

#include "fathom/kernels/adam/adam.h"

namespace fathom {

/// One step in place on vectors of equal length.
void adam_ref(const AdamStep& s, const std::vector<double>& grad, std::vector<double>& w,
              std::vector<double>& m, std::vector<double>& v);

}  // namespace fathom
