#include "fathom/parallel/data_parallel.h"

#include <gtest/gtest.h>

#include "fathom/dist/local_ranks.h"

namespace fathom {
namespace {

TEST(DataParallel, SharesTileTheSamplesInOrder) {
  const std::vector<std::vector<int64_t>> cases = {{},
                                                   {7},
                                                   {1, 1, 1, 1},
                                                   {100, 1, 1, 1, 1},
                                                   {1, 1, 1, 1, 100},
                                                   {3, 9, 2, 40, 5, 5, 6, 1, 8, 21}};
  for (const std::vector<int64_t>& lengths : cases) {
    for (int n : {1, 2, 3, 4}) {
      const auto errors = dist::run_local_ranks(n, [&](dist::World& world) {
        const dist::Group all = world.everyone();
        const auto [begin, end] = share_of(all, lengths);
        std::vector<uint64_t> mine;
        for (size_t i = begin; i < end; ++i) mine.push_back(i);
        const std::vector<uint64_t> together = all.concatenate(mine);
        ASSERT_EQ(together.size(), lengths.size());
        for (size_t i = 0; i < together.size(); ++i) EXPECT_EQ(together[i], i);
      });
      for (const std::string& e : errors) EXPECT_EQ(e, "");
    }
  }
}

TEST(DataParallel, GradientsMeetAtTheOwnersAndMastersComeBack) {
  const auto errors = dist::run_local_ranks(3, [](dist::World& world) {
    const dist::Group all = world.everyone();
    std::vector<Parameter> storage;
    storage.push_back(make_matrix("a", 33, 20));
    storage.push_back(make_plain("b", {7}, DType::kF32));
    storage.push_back(make_plain("c", {5, 3}, DType::kF32));
    std::vector<Parameter*> parameters;
    for (Parameter& p : storage) {
      p.alloc();
      p.alloc_grad();
      for (int64_t i = 0; i < p.grad.numel(); ++i) {
        p.grad.f32()[i] = static_cast<float>((all.rank() + 1) * (i + 1));
      }
      parameters.push_back(&p);
    }
    const std::vector<int> owners = deal_parameters(all, parameters);
    EXPECT_EQ(owners, (std::vector<int>{0, 1, 2}));
    sum_gradients(all, parameters, owners);
    for (size_t p = 0; p < parameters.size(); ++p) {
      if (owners[p] != all.rank()) continue;
      for (int64_t i = 0; i < storage[p].grad.numel(); ++i) {
        ASSERT_EQ(storage[p].grad.f32()[i], static_cast<float>(6 * (i + 1)));
        storage[p].master.f32()[i] = storage[p].grad.f32()[i];
      }
    }
    share_masters(all, parameters, owners);
    for (Parameter& p : storage) {
      for (int64_t i = 0; i < p.master.numel(); ++i) {
        ASSERT_EQ(p.master.f32()[i], static_cast<float>(6 * (i + 1)));
      }
    }
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
}

}  // namespace
}  // namespace fathom
