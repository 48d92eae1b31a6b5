#include "fathom/train/balance.h"

#include <algorithm>
#include <numeric>
#include <queue>

#include "fathom/base/error.h"
#include "fathom/parallel/data_parallel.h"
#include "fathom/train/packing.h"

namespace fathom {
namespace {

struct Bin {
  int64_t weight = 0;
  std::vector<int64_t> items;
};

/// A division of some of the items, its bins from heavy to light.
struct Division {
  std::vector<Bin> bins;
  int64_t number = 0;  // of its making, which decides between equal spreads
  int64_t spread() const { return bins.front().weight - bins.back().weight; }
};

struct SmallerSpread {
  bool operator()(const Division& a, const Division& b) const {
    if (a.spread() != b.spread()) return a.spread() < b.spread();
    return a.number > b.number;
  }
};

void sort_bins(Division* d) {
  std::stable_sort(d->bins.begin(), d->bins.end(),
                   [](const Bin& a, const Bin& b) { return a.weight > b.weight; });
}

Division join(Division a, const Division& b, int64_t number) {
  const size_t k = a.bins.size();
  for (size_t i = 0; i < k; ++i) {
    const Bin& other = b.bins[k - 1 - i];
    a.bins[i].weight += other.weight;
    a.bins[i].items.insert(a.bins[i].items.end(), other.items.begin(), other.items.end());
  }
  a.number = number;
  sort_bins(&a);
  return a;
}

std::vector<int64_t> cut_by_count(size_t n, int64_t each) {
  std::vector<int64_t> borders = {0};
  while (borders.back() < static_cast<int64_t>(n)) {
    borders.push_back(std::min(static_cast<int64_t>(n), borders.back() + each));
  }
  return borders;
}

/// The smallest limit that needs no more micro-batches than max_tokens does.
std::vector<int64_t> cut_evenly(const std::vector<int64_t>& lengths, int64_t max_tokens) {
  const size_t fewest = cut_micro_batches(lengths, max_tokens).size();
  int64_t low = 1, high = max_tokens;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (cut_micro_batches(lengths, middle).size() <= fewest) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return cut_micro_batches(lengths, low);
}

}  // namespace

std::vector<std::vector<int64_t>> karmarkar_karp(const std::vector<int64_t>& weights,
                                                 int num_bins) {
  FATHOM_ASSERT(num_bins >= 1, "into ", num_bins, " bins");
  const auto k = static_cast<size_t>(num_bins);
  std::vector<int64_t> order(weights.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto weight_of = [&](int64_t i) { return weights[static_cast<size_t>(i)]; };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::pair(weight_of(a), a) < std::pair(weight_of(b), b);
  });
  // Weightless stand-ins sort in front.
  const size_t missing = (k - order.size() % k) % k;
  std::priority_queue<Division, std::vector<Division>, SmallerSpread> divisions;
  int64_t number = 0;
  for (size_t at = 0; at < order.size() + missing; at += k) {
    Division d{.bins = std::vector<Bin>(k), .number = number++};
    for (size_t b = 0; b < k; ++b) {
      if (at + b < missing) continue;
      const int64_t item = order[at + b - missing];
      d.bins[b] = {weight_of(item), {item}};
    }
    sort_bins(&d);
    divisions.push(std::move(d));
  }
  while (divisions.size() > 1) {
    const Division a = divisions.top();
    divisions.pop();
    const Division b = divisions.top();
    divisions.pop();
    divisions.push(join(a, b, number++));
  }
  std::vector<std::vector<int64_t>> result(k);
  if (divisions.empty()) return result;
  for (size_t b = 0; b < k; ++b) {
    result[b] = divisions.top().bins[b].items;
    std::sort(result[b].begin(), result[b].end());
  }
  return result;
}

std::vector<std::vector<int64_t>> deal_samples(const std::vector<int64_t>& lengths, int num_ranks,
                                               bool balanced) {
  if (balanced && num_ranks > 1) return karmarkar_karp(lengths, num_ranks);
  std::vector<std::vector<int64_t>> result;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto [begin, end] = share_of(rank, num_ranks, lengths);
    std::vector<int64_t>& mine = result.emplace_back(end - begin);
    std::iota(mine.begin(), mine.end(), static_cast<int64_t>(begin));
  }
  return result;
}

std::vector<int64_t> cut_samples(const std::vector<int64_t>& lengths, const MicroBatchCut& cut) {
  if (cut.even) return cut_evenly(lengths, cut.max_tokens);
  if (cut.num_samples > 0) return cut_by_count(lengths.size(), cut.num_samples);
  return cut_micro_batches(lengths, cut.max_tokens);
}

std::vector<SampleRange> cut_share(const RankGroups& groups,
                                   const std::vector<std::vector<int64_t>>& shares,
                                   const std::vector<int64_t>& lengths, const MicroBatchCut& cut) {
  const auto ranges_of = [&](int member) {
    std::vector<int64_t> own;
    for (int64_t i : shares[static_cast<size_t>(member)]) {
      own.push_back(lengths[static_cast<size_t>(i)]);
    }
    const std::vector<int64_t> borders = cut_samples(own, cut);
    std::vector<SampleRange> ranges;
    for (size_t b = 0; b + 1 < borders.size(); ++b) {
      ranges.push_back({static_cast<size_t>(borders[b]), static_cast<size_t>(borders[b + 1])});
    }
    return ranges;
  };
  std::vector<SampleRange> own = ranges_of(groups.dp.rank());
  if (!groups.shares_experts_over_dp()) return own;
  size_t most = own.size();
  for (int member = 0; member < groups.dp.size(); ++member) {
    most = std::max(most, ranges_of(member).size());
  }
  const size_t n = shares[static_cast<size_t>(groups.dp.rank())].size();
  own.resize(most, {n, n});
  return own;
}

std::vector<SampleRange> own_micro_batches(const RankGroups& groups,
                                           const std::vector<int64_t>& lengths,
                                           int64_t max_tokens) {
  const std::vector<std::vector<int64_t>> shares =
      deal_samples(lengths, groups.dp.size(), /*balanced=*/false);
  std::vector<SampleRange> ranges = cut_share(groups, shares, lengths, {.max_tokens = max_tokens});
  const std::vector<int64_t>& own = shares[static_cast<size_t>(groups.dp.rank())];
  const size_t first = own.empty() ? lengths.size() : static_cast<size_t>(own.front());
  for (SampleRange& r : ranges) {
    r.begin += first;
    r.end += first;
  }
  return ranges;
}

}  // namespace fathom
