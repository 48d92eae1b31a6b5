#include "fathom/parallel/data_parallel.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {
namespace {

constexpr int64_t kBucket = int64_t{8} << 20;  // floats under way at a time

/// Cuts the tensors into pieces and calls `run` on buckets of them.
template <typename TensorOf, typename Run>
void in_buckets(const std::vector<Parameter*>& parameters, const std::vector<int>& owners,
                const TensorOf& tensor_of, const Run& run) {
  FATHOM_ASSERT(parameters.size() == owners.size());
  std::vector<dist::Group::Piece> pieces;
  int64_t used = 0;
  for (size_t p = 0; p < parameters.size(); ++p) {
    const Tensor& tensor = tensor_of(*parameters[p]);
    for (int64_t at = 0; at < tensor.numel();) {
      const int64_t n = std::min(tensor.numel() - at, kBucket - used);
      pieces.push_back({tensor.f32() + at, n, owners[p]});
      at += n;
      used += n;
      if (used < kBucket) continue;
      run(pieces);
      pieces.clear();
      used = 0;
    }
  }
  if (!pieces.empty()) run(pieces);
}

}  // namespace

std::pair<size_t, size_t> share_of(const dist::Group& group, const std::vector<int64_t>& lengths) {
  return share_of(group.rank(), group.size(), lengths);
}

std::pair<size_t, size_t> share_of(int index, int size, const std::vector<int64_t>& lengths) {
  int64_t total = 0;
  for (int64_t n : lengths) total += n;
  // A sample belongs to the member in whose equal part of the total its middle lies.
  const auto owner_of = [&](int64_t before, int64_t length) {
    const int64_t twice_middle = 2 * before + length;
    return std::min<int64_t>(size - 1, twice_middle * size / std::max<int64_t>(1, 2 * total));
  };
  size_t begin = 0, end = 0;
  int64_t before = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t owner = owner_of(before, lengths[i]);
    if (owner < index) begin = i + 1;
    if (owner <= index) end = i + 1;
    before += lengths[i];
  }
  return {begin, std::max(begin, end)};
}

std::vector<int> deal_parameters(const RankGroups& groups,
                                 const std::vector<Parameter*>& parameters) {
  std::vector<int64_t> dense(static_cast<size_t>(groups.dp_cp.size()));
  std::vector<int64_t> experts(static_cast<size_t>(groups.expert_dp.size()));
  std::vector<int> owners;
  for (const Parameter* p : parameters) {
    std::vector<int64_t>& load = is_routed_expert(*p) ? experts : dense;
    const auto least = std::min_element(load.begin(), load.end());
    *least += p->global_numel();  // parts may differ in size, the owners of all may not
    owners.push_back(static_cast<int>(least - load.begin()));
  }
  return owners;
}

void sum_gradients(const dist::Group& group, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners) {
  if (group.size() == 1) return;
  in_buckets(
      parameters, owners, [](const Parameter& p) -> const Tensor& { return p.grad; },
      [&](const auto& pieces) { group.sum_to_owners(pieces); });
}

namespace {

/// The parameters of one kind, with their owners.
struct Chosen {
  std::vector<Parameter*> parameters;
  std::vector<int> owners;
};

Chosen choose(const std::vector<Parameter*>& parameters, const std::vector<int>& owners,
              bool experts) {
  Chosen chosen;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (is_routed_expert(*parameters[i]) != experts) continue;
    chosen.parameters.push_back(parameters[i]);
    chosen.owners.push_back(owners[i]);
  }
  return chosen;
}

/// Adds gradients of which every member has a part, on all members: many small tensors, so they
/// travel together.
void sum_parts(const dist::Group& group, ShardGroup which,
               const std::vector<Parameter*>& parameters) {
  if (group.size() == 1) return;
  std::vector<Parameter*> partial;
  for (Parameter* p : parameters) {
    if (p->gradient_group == which) partial.push_back(p);
  }
  in_buckets(
      partial, std::vector<int>(partial.size(), 0),
      [](const Parameter& p) -> const Tensor& { return p.grad; },
      [&](const std::vector<dist::Group::Piece>& pieces) {
        std::vector<float> together;
        for (const auto& piece : pieces) {
          together.insert(together.end(), piece.data, piece.data + piece.n);
        }
        group.sum(together.data(), static_cast<int64_t>(together.size()));
        const float* from = together.data();
        for (const auto& piece : pieces) {
          std::copy_n(from, piece.n, piece.data);
          from += piece.n;
        }
      });
}

}  // namespace

void sum_gradients(const RankGroups& groups, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners) {
  sum_parts(groups.layout.tp, ShardGroup::kTp, parameters);
  sum_parts(groups.layout.etp, ShardGroup::kEtp, parameters);
  const Chosen dense = choose(parameters, owners, false);
  const Chosen experts = choose(parameters, owners, true);
  sum_gradients(groups.dp_cp, dense.parameters, dense.owners);
  sum_gradients(groups.expert_dp, experts.parameters, experts.owners);
}

void share_masters(const RankGroups& groups, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners) {
  const auto share = [&](const dist::Group& group, const Chosen& chosen) {
    if (group.size() == 1) return;
    in_buckets(
        chosen.parameters, chosen.owners,
        [](const Parameter& p) -> const Tensor& { return p.master; },
        [&](const auto& pieces) { group.share_from_owners(pieces); });
  };
  share(groups.dp_cp, choose(parameters, owners, false));
  share(groups.expert_dp, choose(parameters, owners, true));
}

}  // namespace fathom
