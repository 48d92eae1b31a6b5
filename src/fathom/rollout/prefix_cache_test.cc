#include "fathom/rollout/prefix_cache.h"

#include <gtest/gtest.h>

#include "fathom/rollout/history_hash_model.h"

namespace fathom {
namespace {

constexpr int64_t kPage = 8;

class PrefixCacheTest : public ::testing::Test {
 protected:
  /// A state that has seen so many tokens, with entries that say which page they are of.
  std::unique_ptr<SequenceState> state_of(int64_t num_tokens, float mark) {
    auto state = SequenceState::create(space_);
    for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
      const int64_t ratio = config_.ratio(l);
      if (ratio == 0) continue;
      for (int64_t e = 0; e < num_tokens / ratio; ++e) {
        const float entry[3] = {mark, static_cast<float>(e), 0.0f};
        std::vector<EntryRun> runs, key_runs;
        const EntryFormat& format = state->append_entries(l, 0, 1, &runs);
        encode_entries(format, entry, 1, runs[0].to);
        if (ratio != 4) continue;
        const EntryFormat& key_format = state->append_indexer_keys(l, 0, 1, &key_runs);
        encode_entries(key_format, entry, 1, key_runs[0].to);
      }
    }
    state->advance(num_tokens);
    return state;
  }

  /// Puts the pages of `tokens` in, the last token aside.
  void insert(PrefixCache* cache, const std::vector<int32_t>& tokens, float mark) {
    const auto state = state_of(static_cast<int64_t>(tokens.size()), mark);
    for (size_t end = kPage; end <= tokens.size(); end += kPage) {
      cache->insert(std::span(tokens).first(end), *state, make_state_block(*space_), nullptr);
    }
  }

  static std::vector<int32_t> tokens(int32_t first, int64_t count) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < count; ++i) ids.push_back(first + i);
    return ids;
  }

  ModelConfig config_ = full_hash_model_config(24);
  std::shared_ptr<StateSpace> space_ = std::make_shared<StateSpace>(config_, kPage, false, 0);
};

TEST_F(PrefixCacheTest, OnlyWholePagesWithinTheLimitHit) {
  PrefixCache cache(space_);
  const std::vector<int32_t> ids = tokens(0, 20);
  EXPECT_EQ(cache.cached_tokens(ids, 20, false), 0);
  insert(&cache, ids, 1.0f);
  EXPECT_EQ(cache.num_pages(), 2);
  EXPECT_EQ(cache.cached_tokens(ids, 20, false), 16);
  EXPECT_EQ(cache.cached_tokens(ids, 15, false), 8);
  EXPECT_EQ(cache.cached_tokens(ids, 7, false), 0);
  std::vector<int32_t> other = ids;
  other[9] = 99;
  EXPECT_EQ(cache.cached_tokens(other, 20, false), 8);
  other[0] = 99;
  EXPECT_EQ(cache.cached_tokens(other, 20, false), 0);
  EXPECT_EQ(cache.cached_tokens(ids, 20, true), 0) << "no routes are kept";
}

TEST_F(PrefixCacheTest, BranchesShareTheirTrunk) {
  PrefixCache cache(space_);
  std::vector<int32_t> a = tokens(0, 24), b = a;
  b[20] = 77;
  insert(&cache, a, 1.0f);
  insert(&cache, b, 2.0f);
  EXPECT_EQ(cache.num_pages(), 4);
  const auto state = cache.resume(b, 24, nullptr);
  ASSERT_NE(state, nullptr);
  EXPECT_EQ(state->num_tokens(), 24);
  const KeyPages pages = state->entry_pages(1);
  const auto entry = [&](int64_t e) {
    return static_cast<const float*>(
        pages.pages[e / pages.entries_per_page])[e % pages.entries_per_page * config_.head_dim];
  };
  EXPECT_EQ(entry(3), 1.0f) << "the trunk came first";
  EXPECT_EQ(entry(4), 2.0f);
}

TEST_F(PrefixCacheTest, LeavesGoInTheOrderOfTheirLastUse) {
  PrefixCache cache(space_);
  const std::vector<int32_t> a = tokens(0, 16), b = tokens(100, 16), c = tokens(200, 8);
  insert(&cache, a, 1.0f);
  insert(&cache, b, 2.0f);
  insert(&cache, c, 3.0f);
  cache.resume(a, 16, nullptr);
  const auto length = [&](const std::vector<int32_t>& ids) {
    return cache.cached_tokens(ids, 100, false);
  };
  ASSERT_TRUE(cache.evict_one());
  EXPECT_EQ(length(b), 8) << "its last page was used before all others";
  ASSERT_TRUE(cache.evict_one());
  EXPECT_EQ(length(b), 0);
  ASSERT_TRUE(cache.evict_one());
  EXPECT_EQ(length(c), 0);
  EXPECT_EQ(length(a), 16);
  ASSERT_TRUE(cache.evict_one());
  ASSERT_TRUE(cache.evict_one());
  EXPECT_FALSE(cache.evict_one());
  EXPECT_EQ(cache.num_pages(), 0);
  EXPECT_EQ(space_->pools.used_bytes(), 0);
}

TEST_F(PrefixCacheTest, APageWithoutTheOneBeforeItIsNotKept) {
  PrefixCache cache(space_);
  const std::vector<int32_t> ids = tokens(0, 16);
  const auto state = state_of(16, 1.0f);
  cache.insert(ids, *state, make_state_block(*space_), nullptr);
  EXPECT_EQ(cache.num_pages(), 0);
}

TEST_F(PrefixCacheTest, WhatIsEvictedLivesOnInTheSequencesThatUseIt) {
  PrefixCache cache(space_);
  const std::vector<int32_t> ids = tokens(0, 16);
  insert(&cache, ids, 5.0f);
  const auto state = cache.resume(ids, 16, nullptr);
  cache.clear();
  EXPECT_EQ(cache.num_pages(), 0);
  EXPECT_EQ(static_cast<const float*>(state->entry_pages(2).pages[1])[0], 5.0f);
  EXPECT_EQ(space_->pools.used_bytes(), state->num_bytes());
}

TEST_F(PrefixCacheTest, AMaximumOfPagesHolds) {
  PrefixCache cache(space_, 3);
  for (int32_t i = 0; i < 10; ++i) insert(&cache, tokens(100 * i, 16), 1.0f);
  EXPECT_LE(cache.num_pages(), 3);
  insert(&cache, tokens(5000, 80), 1.0f);
  EXPECT_LE(cache.num_pages(), 3);
}

}  // namespace
}  // namespace fathom
