#include "fathom/train/balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace fathom {
namespace {

using Bins = std::vector<std::vector<int64_t>>;

std::vector<int64_t> random_lengths(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> lengths;
  for (int i = 0; i < n; ++i) lengths.push_back(1 + static_cast<int64_t>(random() % 4096));
  return lengths;
}

int64_t weight(const std::vector<int64_t>& bin, const std::vector<int64_t>& weights) {
  int64_t sum = 0;
  for (int64_t i : bin) sum += weights[static_cast<size_t>(i)];
  return sum;
}

/// Heaviest minus lightest.
int64_t spread(const Bins& bins, const std::vector<int64_t>& weights) {
  int64_t least = INT64_MAX, most = 0;
  for (const auto& bin : bins) {
    least = std::min(least, weight(bin, weights));
    most = std::max(most, weight(bin, weights));
  }
  return most - least;
}

void expect_partition(const Bins& bins, size_t n) {
  std::vector<int64_t> all;
  for (const auto& bin : bins) {
    EXPECT_TRUE(std::is_sorted(bin.begin(), bin.end()));
    all.insert(all.end(), bin.begin(), bin.end());
  }
  std::sort(all.begin(), all.end());
  ASSERT_EQ(all.size(), n);
  for (size_t i = 0; i < n; ++i) EXPECT_EQ(all[i], static_cast<int64_t>(i));
}

TEST(KarmarkarKarp, FollowsTheRuleOnAnExample) {
  // Sorted 1 2 | 3 4 | 6 9: spreads 1, 1, 3. {9, 6} with {2, 1}: {10, 8}, spread 2; with {4, 3}:
  // 10 + 3 and 8 + 4, so {9, 1, 3} and {6, 2, 4}.
  EXPECT_EQ(karmarkar_karp({9, 1, 6, 2, 4, 3}, 2), (Bins{{0, 1, 5}, {2, 3, 4}}));
}

TEST(KarmarkarKarp, EveryItemIsInOneBinAndCountsDifferByOne) {
  for (int bins : {1, 2, 3, 4, 7, 8}) {
    for (int n : {0, 1, 5, 8, 31, 64, 257}) {
      const std::vector<int64_t> lengths = random_lengths(n, static_cast<unsigned>(n * 10 + bins));
      const Bins result = karmarkar_karp(lengths, bins);
      ASSERT_EQ(result.size(), static_cast<size_t>(bins));
      expect_partition(result, lengths.size());
      for (const auto& bin : result) {
        EXPECT_GE(static_cast<int>(bin.size()), n / bins);
        EXPECT_LE(static_cast<int>(bin.size()), (n + bins - 1) / bins);
      }
      EXPECT_EQ(result, karmarkar_karp(lengths, bins));
    }
  }
}

TEST(KarmarkarKarp, IsFarMoreEvenThanRoundRobinAndRuns) {
  for (unsigned seed : {1u, 2u, 3u}) {
    const std::vector<int64_t> lengths = random_lengths(256, seed);
    Bins strided(8);
    for (int64_t i = 0; i < 256; ++i) strided[static_cast<size_t>(i % 8)].push_back(i);
    const int64_t even = spread(deal_samples(lengths, 8, true), lengths);
    EXPECT_LT(even * 50, spread(strided, lengths));
    EXPECT_LT(even * 50, spread(deal_samples(lengths, 8, false), lengths));
  }
}

TEST(DealSamples, WithoutBalanceRunsOfNeighboursTileTheSamples) {
  for (int ranks : {1, 2, 3, 5}) {
    const std::vector<int64_t> lengths = random_lengths(23, 7);
    const Bins shares = deal_samples(lengths, ranks, false);
    expect_partition(shares, lengths.size());
    int64_t next = 0;
    for (const auto& share : shares) {
      for (int64_t i : share) EXPECT_EQ(i, next++);
    }
  }
}

TEST(CutSamples, ByCountByTokensAndEvenly) {
  const std::vector<int64_t> lengths = {4, 4, 4, 4, 4, 1};
  using Borders = std::vector<int64_t>;
  EXPECT_EQ(cut_samples(lengths, {.num_samples = 4}), (Borders{0, 4, 6}));
  EXPECT_EQ(cut_samples(lengths, {.num_samples = 100}), (Borders{0, 6}));
  EXPECT_EQ(cut_samples(lengths, {.max_tokens = 17}), (Borders{0, 4, 6}));
  // Two are needed; the fullest can be 12 in place of 16.
  EXPECT_EQ(cut_samples(lengths, {.max_tokens = 17, .even = true}), (Borders{0, 3, 6}));
  EXPECT_EQ(cut_samples({}, {.max_tokens = 17, .even = true}), (Borders{0}));
  EXPECT_EQ(cut_samples({}, {.num_samples = 2}), (Borders{0}));
  EXPECT_EQ(cut_samples({50, 1, 1}, {.max_tokens = 10, .even = true}), (Borders{0, 1, 3}));
}

TEST(CutSamples, EvenNeverTakesMoreMicroBatches) {
  for (unsigned seed : {1u, 2u, 3u, 4u}) {
    const std::vector<int64_t> lengths = random_lengths(100, seed);
    for (int64_t limit : {1000, 8192, 50000}) {
      const auto plain = cut_samples(lengths, {.max_tokens = limit});
      const auto even = cut_samples(lengths, {.max_tokens = limit, .even = true});
      EXPECT_EQ(plain.size(), even.size());
      for (size_t b = 0; b + 1 < even.size(); ++b) {
        int64_t tokens = 0;
        for (int64_t i = even[b]; i < even[b + 1]; ++i) tokens += lengths[static_cast<size_t>(i)];
        EXPECT_TRUE(tokens <= limit || even[b + 1] == even[b] + 1);
      }
    }
  }
}

}  // namespace
}  // namespace fathom
