#include "fathom/dist/world.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>

#include "fathom/dist/local_ranks.h"

namespace fathom::dist {
namespace {

void expect_all_well(const std::vector<std::string>& errors) {
  for (size_t r = 0; r < errors.size(); ++r) EXPECT_EQ(errors[r], "") << "rank " << r;
}

/// Values whose sum depends on the order of addition.
std::vector<float> values_of(int rank, int64_t n) {
  std::mt19937 random(static_cast<unsigned>(rank) + 1);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) {
    v = std::ldexp(static_cast<float>(random() % 2000) - 1000.0f,
                   static_cast<int>(random() % 40) - 20);
  }
  return values;
}

class Sizes : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(World, Sizes, ::testing::Values(1, 2, 3, 5, 8));

TEST_P(Sizes, CollectivesMoveEveryByte) {
  const int n = GetParam();
  expect_all_well(run_local_ranks(n, [&](World& world) {
    const Group all = world.everyone();
    const int me = all.rank();
    all.barrier();
    for (int root = 0; root < n; ++root) {
      EXPECT_EQ(all.broadcast(me == root ? str_cat("from ", root) : "", root),
                str_cat("from ", root));
    }
    std::vector<int> gathered(static_cast<size_t>(n));
    const int mine = me * 10;
    all.all_gather(&mine, sizeof mine, gathered.data());
    for (int i = 0; i < n; ++i) EXPECT_EQ(gathered[static_cast<size_t>(i)], i * 10);
    const std::vector<int64_t> joined =
        all.concatenate(std::vector<int64_t>(static_cast<size_t>(me), me));
    std::vector<int64_t> expected;
    for (int i = 0; i < n; ++i) expected.insert(expected.end(), static_cast<size_t>(i), i);
    EXPECT_EQ(joined, expected);
    // Rank r sends (r + i) % 3 numbers to rank i.
    std::vector<int64_t> send_bytes, recv_bytes;
    std::vector<int32_t> send;
    for (int i = 0; i < n; ++i) {
      send_bytes.push_back((me + i) % 3 * 4);
      recv_bytes.push_back((me + i) % 3 * 4);
      for (int k = 0; k < (me + i) % 3; ++k) send.push_back(me * 100 + i);
    }
    std::vector<int32_t> recv(send.size());
    all.all_to_all_v(send.data(), send_bytes, recv.data(), recv_bytes);
    size_t at = 0;
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < (me + i) % 3; ++k) EXPECT_EQ(recv[at++], i * 100 + me);
    }
  }));
}

TEST_P(Sizes, SumsHaveTheBitsOfTheirOrder) {
  const int n = GetParam();
  constexpr int64_t kCount = 3001;
  std::vector<std::vector<float>> parts;
  std::vector<const float*> pointers;
  for (int r = 0; r < n; ++r) parts.push_back(values_of(r, kCount));
  for (const auto& part : parts) pointers.push_back(part.data());
  for (SumOrder order : {SumOrder::kRankOrder, SumOrder::kTree}) {
    std::vector<float> expected(kCount);
    add_in_order(pointers, kCount, order, expected.data());
    expect_all_well(run_local_ranks(n, [&](World& world) {
      std::vector<float> data = parts[static_cast<size_t>(world.rank())];
      world.everyone().sum(data.data(), kCount, order);
      EXPECT_EQ(std::memcmp(data.data(), expected.data(), kCount * sizeof(float)), 0);
    }));
  }
}

TEST(Sum, OrdersAreAsNamed) {
  const float a = 1.0f, b = 1e8f, c = -1e8f, d = 1.0f, e = 0.5f;
  float sum = 0.0f;
  add_in_order<float>({&a, &b, &c, &d}, 1, SumOrder::kRankOrder, &sum);
  EXPECT_EQ(sum, ((a + b) + c) + d);
  add_in_order<float>({&a, &b, &c, &d, &e}, 1, SumOrder::kTree, &sum);
  EXPECT_EQ(sum, ((a + b) + (c + d)) + e);
}

TEST(World, PiecesAreSummedAtTheirOwners) {
  constexpr int kSize = 3;
  constexpr int64_t kCount = 100;
  expect_all_well(run_local_ranks(kSize, [&](World& world) {
    const Group all = world.everyone();
    std::vector<std::vector<float>> data;
    std::vector<Group::Piece> pieces;
    for (int p = 0; p < 5; ++p) data.push_back(values_of(all.rank() * 5 + p, kCount));
    for (int p = 0; p < 5; ++p) {
      pieces.push_back({data[static_cast<size_t>(p)].data(), kCount, p % kSize});
    }
    all.sum_to_owners(pieces);
    all.share_from_owners(pieces);
    for (int p = 0; p < 5; ++p) {
      for (int64_t i = 0; i < kCount; ++i) {
        float expected = values_of(p, kCount)[static_cast<size_t>(i)];
        for (int r = 1; r < kSize; ++r) {
          expected += values_of(r * 5 + p, kCount)[static_cast<size_t>(i)];
        }
        ASSERT_EQ(data[static_cast<size_t>(p)][static_cast<size_t>(i)], expected);
      }
    }
  }));
}

TEST(World, BigMessagesBothWaysDoNotBlock) {
  expect_all_well(run_local_ranks(3, [](World& world) {
    const Group all = world.everyone();
    const int64_t n = 12 << 20;
    std::vector<char> send(static_cast<size_t>(3 * n), static_cast<char>('a' + all.rank()));
    std::vector<char> recv(send.size());
    all.all_to_all(send.data(), recv.data(), n);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(recv[static_cast<size_t>(i * n)], 'a' + i);
      EXPECT_EQ(recv[static_cast<size_t>((i + 1) * n - 1)], 'a' + i);
    }
    EXPECT_EQ(world.traffic().bytes_sent, 2 * n);
  }));
}

TEST(World, GroupsWorkBesideOneAnother) {
  expect_all_well(run_local_ranks(4, [](World& world) {
    const int me = world.rank();
    const Group row = world.group({me / 2 * 2, me / 2 * 2 + 1});
    const Group column = world.group({me % 2, me % 2 + 2});
    float value = static_cast<float>(1 << me);
    row.sum(&value, 1);
    EXPECT_EQ(value, me / 2 == 0 ? 3.0f : 12.0f);
    column.sum(&value, 1);
    EXPECT_EQ(value, 15.0f);
    if (column.rank() == 0) {
      column.send(1, &me, sizeof me);
    } else {
      int got = -1;
      column.receive(0, &got, sizeof got);
      EXPECT_EQ(got, me - 2);
    }
  }));
}

TEST(World, AGroupOfOneNeedsNoWorld) {
  const Group alone;
  float value = 3.0f;
  alone.sum(&value, 1);
  alone.barrier();
  EXPECT_EQ(value, 3.0f);
  EXPECT_EQ(alone.concatenate(std::vector<int>{1, 2}), (std::vector<int>{1, 2}));
  EXPECT_EQ(alone.broadcast("x", 0), "x");
}

TEST(World, RanksThatDoDifferentThingsAreTold) {
  const auto errors = run_local_ranks(2, [](World& world) {
    const Group all = world.everyone();
    float values[4] = {};
    all.broadcast(values, world.rank() == 0 ? 16 : 12, 0);
    all.barrier();
  });
  EXPECT_NE(errors[1].find("expected message 0 of 12 bytes"), std::string::npos) << errors[1];
  EXPECT_NE(errors[0].find("rank 1: "), std::string::npos) << errors[0];
}

}  // namespace
}  // namespace fathom::dist
