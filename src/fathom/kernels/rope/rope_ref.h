// The equations of rope.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// Turns the last 2·angles.size() values of `head` by the angles, pair by pair.
std::vector<double> rope_ref(const std::vector<double>& head, const std::vector<double>& angles);

}  // namespace fathom
