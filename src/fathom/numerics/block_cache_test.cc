#include "fathom/numerics/block_cache.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace fathom {
namespace {

TEST(BlockCache, BlocksAreAlignedAndLargeEnough) {
  for (int repetition = 0; repetition < 2; ++repetition) {
    std::vector<std::pair<std::shared_ptr<void>, size_t>> held;
    for (size_t n = 0; n < (size_t{3} << 20); n = n * 5 / 4 + 1) {
      for (size_t size : {n, n | 63, n + 64}) {
        const auto block = acquire_block(size);
        ASSERT_EQ(reinterpret_cast<uintptr_t>(block.get()) % 64, 0u) << size;
        std::memset(block.get(), static_cast<int>(size % 251), size);
        held.emplace_back(block, size);
      }
    }
    // Nobody wrote into another's block.
    for (const auto& [block, size] : held) {
      const auto* bytes = static_cast<const uint8_t*>(block.get());
      for (size_t i = 0; i < size; i += 1 + size / 7) ASSERT_EQ(bytes[i], size % 251) << size;
      if (size > 0) {
        ASSERT_EQ(bytes[size - 1], size % 251) << size;
      }
    }
  }
}

TEST(BlockCache, AFreedBlockServesTheNextOfItsSize) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "nothing is kept";
#endif
  auto first = acquire_block(5000);
  void* const address = first.get();
  first.reset();
  EXPECT_EQ(acquire_block(4990).get(), address);
}

TEST(BlockCache, BlocksMayOutliveTheirThreadAndDieOnAnother) {
  std::vector<std::shared_ptr<void>> held(100);
  std::thread([&] {
    for (size_t i = 0; i < held.size(); ++i) held[i] = acquire_block(100 * i);
  }).join();
  std::thread([&] { held.clear(); }).join();
  // One that is freed after the cache of its thread is gone.
  std::thread([] {
    thread_local std::shared_ptr<void> late;
    late = acquire_block(1000);
  }).join();
}

}  // namespace
}  // namespace fathom
