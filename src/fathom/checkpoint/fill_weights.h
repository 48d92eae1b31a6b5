// Masters from wherever values come from, on all threads, a few megabytes at a time.
#pragma once

#include <cstdint>
#include <functional>

#include "fathom/base/exec_context.h"
#include "fathom/model/weights.h"

namespace fathom {

/// Where the values of parameters come from. Both are called by several threads at once.
struct WeightsReader {
  /// Rows [begin, end) of the whole tensor (Parameter::global_shape) as fp32, row-major; a vector
  /// is one row. Not for tables.
  std::function<void(const Parameter& p, int64_t begin, int64_t end, float* out)> rows;
  std::function<void(const Parameter& p, int32_t* out)> table;
};

/// Fills every master, whose memory is allocated, with the part that this rank has, and refreshes
/// what kernels read.
void fill_weights(const ExecContext& ctx, Weights* weights, const WeightsReader& reader);

}  // namespace fathom
