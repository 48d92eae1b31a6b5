#include "fathom/kernels/rope/rope_ref.h"

#include <cmath>

namespace fathom {

std::vector<double> rope_ref(const std::vector<double>& head, const std::vector<double>& angles) {
  std::vector<double> out = head;
  const size_t first = head.size() - 2 * angles.size();
  for (size_t i = 0; i < angles.size(); ++i) {
    const double x0 = head[first + 2 * i], x1 = head[first + 2 * i + 1];
    out[first + 2 * i] = x0 * std::cos(angles[i]) - x1 * std::sin(angles[i]);
    out[first + 2 * i + 1] = x0 * std::sin(angles[i]) + x1 * std::cos(angles[i]);
  }
  return out;
}

}  // namespace fathom
