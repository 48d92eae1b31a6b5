// Data parallelism: every rank holds the whole model and works on its share of the samples.
//
// A rank's share is a run of consecutive samples, so what the ranks compute per sample, taken rank
// by rank, stands in sample order, as one rank would have it. Gradients are summed in rank order:
// they are the same bits on every run, and differ from one rank's only in that the chain of
// additions over tokens is cut where a share begins.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "fathom/dist/group.h"
#include "fathom/model/parameter.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

/// Half-open range of the samples that this member works on: consecutive, and of about the same
/// total length for all members. Empty where there are fewer samples than members.
/// @param lengths of all samples, the same on every member.
std::pair<size_t, size_t> share_of(const dist::Group& group, const std::vector<int64_t>& lengths);
/// That of member `index` of `size`.
std::pair<size_t, size_t> share_of(int index, int size, const std::vector<int64_t>& lengths);

/// A member of RankGroups::replicas() for every parameter, which keeps its optimizer state: the one
/// with the fewest elements so far, in the order given. The same on all members, and on the ranks
/// that have the parameters' other parts.
std::vector<int> deal_parameters(const RankGroups& groups,
                                 const std::vector<Parameter*>& parameters);

/// Each parameter's gradient buffer on its owner becomes the sum over the members, in rank order.
/// Buffers of the other members keep their own part. Takes at most some 32 MiB per member more.
void sum_gradients(const dist::Group& group, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners);

/// The same under a layout, over the replicas of each parameter; before that the gradients of ranks
/// which have those of different rows (Parameter::gradient_group) are added, on all of them.
void sum_gradients(const RankGroups& groups, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners);

/// Each parameter's master becomes its owner's. Parameter::refresh() is the caller's.
void share_masters(const RankGroups& groups, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners);

}  // namespace fathom
