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

std::pair<size_t, size_t> share_of(int member, int num_members,
                                   const std::vector<int64_t>& lengths) {
  int64_t total = 0;
  for (int64_t n : lengths) total += n;
  // A sample belongs to the member in whose equal part of the total its middle lies.
  const auto owner_of = [&](int64_t before, int64_t length) {
    const int64_t twice_middle = 2 * before + length;
    return std::min<int64_t>(num_members - 1,
                             twice_middle * num_members / std::max<int64_t>(1, 2 * total));
  };
  size_t begin = 0, end = 0;
  int64_t before = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t owner = owner_of(before, lengths[i]);
    if (owner < member) begin = i + 1;
    if (owner <= member) end = i + 1;
    before += lengths[i];
  }
  return {begin, std::max(begin, end)};
}

std::vector<int> deal_parameters(const dist::Group& group,
                                 const std::vector<Parameter*>& parameters) {
  std::vector<int64_t> load(static_cast<size_t>(group.size()));
  std::vector<int> owners;
  for (const Parameter* p : parameters) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += p->numel();
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

void share_masters(const dist::Group& group, const std::vector<Parameter*>& parameters,
                   const std::vector<int>& owners) {
  if (group.size() == 1) return;
  in_buckets(
      parameters, owners, [](const Parameter& p) -> const Tensor& { return p.master; },
      [&](const auto& pieces) { group.share_from_owners(pieces); });
}

}  // namespace fathom
