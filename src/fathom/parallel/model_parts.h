// The parts of a model on all ranks, put together on the first.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "fathom/model/weights.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

/// Calls visit(parameter, values) on rank 0 for every parameter of the whole model in name order.
/// All ranks call it; memory for one whole tensor at a time is taken there.
/// @param weights of this rank. @param is_wanted the same answer on every rank that has it.
/// @param value_of the parameter's tensor in the master's layout, on the first replica of its part
/// (RankGroups::is_first_replica).
/// @param visit gets the parameter as one rank would have it, without memory, and its values,
/// row-major of its shape.
void gather_parameters(const RankGroups& groups, const Weights& weights,
                       const std::function<bool(const Parameter&)>& is_wanted,
                       const std::function<Tensor(const Parameter&)>& value_of,
                       const std::function<void(const Parameter&, const Tensor&)>& visit);

/// The whole model on rank 0, on the host, in fp32; without memory on the others.
Weights gather_weights(const RankGroups& groups, const Weights& weights);

}  // namespace fathom
