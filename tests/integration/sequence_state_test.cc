// States of sequences: what checkpoints hold, that a rewound state has no memory of what was
// undone, and that every byte is counted.
#include "fathom/model/sequence_state.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/rollout/step_model.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

constexpr int64_t kPage = 16;

class SequenceStateTest : public ::testing::TestWithParam<Precision> {
 protected:
  std::shared_ptr<StateSpace> make_space(int64_t budget) {
    return std::make_shared<StateSpace>(w_.config, kPage, /*with_mtp=*/true, budget, GetParam());
  }

  /// Logits of all tokens.
  Tensor feed(SequenceState* state, const std::vector<int32_t>& ids,
              std::vector<Checkpoint> checkpoints = {}) {
    Batch batch;
    batch.token_ids = ids;
    batch.segments.push_back({.start_pos = state->num_tokens(),
                              .num_tokens = batch.num_tokens(),
                              .state = state,
                              .checkpoints = std::move(checkpoints)});
    std::vector<int64_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    return WeightsModel(ctx_, w_).step(batch, rows);
  }

  std::vector<int32_t> ids(uint64_t seed, int64_t n) const {
    return random_ids(seed, n, w_.config.vocab_size);
  }

  static StateBlock garbage_block(StateSpace& space) {
    StateBlock block = acquire_state_block(space);
    const StateLayout& layout = space.layout;
    std::memset(block.window.get(), 0xAB,
                static_cast<size_t>(layout.piece_bytes(StateLayout::kWindow)));
    std::memset(block.accumulators.get(), 0xAB,
                static_cast<size_t>(layout.piece_bytes(StateLayout::kAccumulators)));
    return block;
  }

  /// Of a latent row (64 channels, 32 of them rotary) and an indexer key (32 channels).
  static std::pair<int64_t, int64_t> row_bytes() {
    switch (GetParam()) {
      case Precision::kFp32:
        return {256, 128};
      case Precision::kParityBf16:
        return {128, 64};
      case Precision::kParityFp8:
        return {100, 36};  // 32 + 32 * 2 + 1 and 32 + 1, in whole words
    }
    return {};
  }

  static bool same_bytes(const Piece& a, const Piece& b, int64_t n) {
    return std::memcmp(a.get(), b.get(), static_cast<size_t>(n)) == 0;
  }
  static void expect_same_block(const StateLayout& layout, const StateBlock& a, const StateBlock& b,
                                const std::string& what) {
    EXPECT_TRUE(same_bytes(a.window, b.window, layout.piece_bytes(StateLayout::kWindow))) << what;
    EXPECT_TRUE(
        same_bytes(a.accumulators, b.accumulators, layout.piece_bytes(StateLayout::kAccumulators)))
        << what;
  }

  Weights w_ = make_tiny_weights(7, GetParam());
  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
};

INSTANTIATE_TEST_SUITE_P(Modes, SequenceStateTest, ::testing::ValuesIn(kAllPrecisions),
                         name_of_mode);

TEST_P(SequenceStateTest, ACheckpointIsTheStateOfASequenceThatEndsThere) {
  // Window 16, ratios 4 and 16: borders of all of them, from several starts.
  const std::vector<int32_t> all = ids(1, 80);
  for (const int64_t start : {0, 1, 7, 16, 33}) {
    const auto space = make_space(0);
    const auto state = SequenceState::create(space);
    if (start > 0) feed(state.get(), {all.begin(), all.begin() + start});
    std::vector<int64_t> lengths;
    for (int64_t n : {1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 48, 50, 64, 79}) {
      if (n > start) lengths.push_back(n);
    }
    std::vector<StateBlock> blocks;
    std::vector<Checkpoint> checkpoints;
    for (size_t i = 0; i < lengths.size(); ++i) blocks.push_back(garbage_block(*space));
    for (size_t i = 0; i < lengths.size(); ++i) checkpoints.push_back({lengths[i], &blocks[i]});
    feed(state.get(), {all.begin() + start, all.end()}, checkpoints);
    for (size_t i = 0; i < lengths.size(); ++i) {
      const auto alone = SequenceState::create(space);
      feed(alone.get(), {all.begin(), all.begin() + lengths[i]});
      expect_same_block(space->layout, blocks[i], alone->block(),
                        str_cat("from ", start, " at ", lengths[i]));
    }
  }
}

TEST_P(SequenceStateTest, ARewoundStateGoesOnAsIfNothingHadHappened) {
  const std::vector<int32_t> kept = ids(1, 40), wrong = ids(2, 9), right = ids(3, 30);
  for (const int64_t num_kept : {1, 3, 15, 16, 30, 40}) {
    for (const int64_t num_right : {0, 1, 4, 8}) {  // of the nine that are fed on trial
      const auto space = make_space(0);
      const auto state = SequenceState::create(space), plain = SequenceState::create(space);
      feed(state.get(), {kept.begin(), kept.begin() + num_kept});
      feed(plain.get(), {kept.begin(), kept.begin() + num_kept});
      const int64_t used = space->pools.used_bytes();
      std::vector<int32_t> trial(right.begin(), right.begin() + num_right);
      trial.insert(trial.end(), wrong.begin() + num_right, wrong.end());
      StateBlock block = garbage_block(*space);
      if (num_right == 0) copy_state_block(*space, state->block(), block);
      std::vector<Checkpoint> checkpoints;
      if (num_right > 0) checkpoints.push_back({num_kept + num_right, &block});
      feed(state.get(), trial, checkpoints);
      state->rewind(num_kept + num_right, std::move(block));
      if (num_right > 0) feed(plain.get(), {right.begin(), right.begin() + num_right});
      expect_same_block(space->layout, state->block(), plain->block(), "after the rewind");
      EXPECT_EQ(state->num_bytes(), plain->num_bytes());
      if (num_right == 0) {
        EXPECT_EQ(space->pools.used_bytes(), used);
      }
      for (int64_t t = num_right; t < 30; t += 5) {
        const std::vector<int32_t> next(right.begin() + t,
                                        right.begin() + std::min(t + 5, int64_t{30}));
        const Tensor a = feed(state.get(), next), b = feed(plain.get(), next);
        ASSERT_EQ(std::memcmp(a.bytes(), b.bytes(), static_cast<size_t>(a.num_bytes())), 0)
            << num_kept << " kept, " << num_right << " right, token " << t;
      }
      expect_same_block(space->layout, state->block(), plain->block(), "at the end");
    }
  }
}

TEST_P(SequenceStateTest, AResumedPrefixGivesTheSameBits) {
  const std::vector<int32_t> all = ids(5, 70);
  const auto space = make_space(0);
  const auto plain = SequenceState::create(space);
  StateBlock at_page_end;
  std::vector<HistoryPage> pages;
  feed(plain.get(), {all.begin(), all.begin() + 32});
  at_page_end = garbage_block(*space);
  copy_state_block(*space, plain->block(), at_page_end);
  pages = {plain->page(0), plain->page(1)};
  const Tensor want = feed(plain.get(), {all.begin() + 32, all.end()});
  const auto resumed = SequenceState::resume(space, {&pages[0], &pages[1]}, at_page_end);
  EXPECT_EQ(resumed->num_tokens(), 32);
  const Tensor got = feed(resumed.get(), {all.begin() + 32, all.end()});
  EXPECT_EQ(std::memcmp(got.bytes(), want.bytes(), static_cast<size_t>(want.num_bytes())), 0);
  expect_same_block(space->layout, resumed->block(), plain->block(), "at the end");
}

TEST_P(SequenceStateTest, BytesAreCountedExactlyAndSharedPagesOnce) {
  const auto space = make_space(0);
  const StateLayout& layout = space->layout;
  {
    const auto state = SequenceState::create(space);
    EXPECT_EQ(space->pools.used_bytes(), layout.fixed_bytes());
    feed(state.get(), ids(1, 40));
    // 40 tokens: 10 ratio-4 entries and keys on 3 pages of 4, 2 ratio-16 entries on 2 pages of 1.
    const int64_t row = row_bytes().first, key = row_bytes().second;
    EXPECT_EQ(layout.history_bytes(40), 3 * 4 * row + 3 * 4 * key + 2 * row);
    EXPECT_EQ(space->pools.used_bytes(), layout.fixed_bytes() + layout.history_bytes(40));
    EXPECT_EQ(state->num_bytes(), space->pools.used_bytes());
    const auto fork = state->fork();
    EXPECT_EQ(space->pools.used_bytes(), 2 * layout.fixed_bytes() + layout.history_bytes(40));
    feed(fork.get(), ids(2, 4));  // its own copies of the last ratio-4 pages
    EXPECT_EQ(space->pools.used_bytes(),
              2 * layout.fixed_bytes() + layout.history_bytes(40) + 4 * row + 4 * key);
    feed(state.get(), ids(3, 4));  // alone on the old ones now
    EXPECT_EQ(space->pools.used_bytes(),
              2 * layout.fixed_bytes() + layout.history_bytes(40) + 4 * row + 4 * key);
    int64_t by_kind = 0;
    for (const PoolUsage& pool : space->pools.usage()) by_kind += pool.used_bytes();
    EXPECT_EQ(by_kind, space->pools.used_bytes());
  }
  EXPECT_EQ(space->pools.used_bytes(), 0);
  EXPECT_GT(space->pools.kept_bytes(), 0) << "pieces wait for the next sequence";
  space->pools.trim();
  EXPECT_EQ(space->pools.kept_bytes(), 0);
}

TEST_P(SequenceStateTest, ABudgetIsNeverExceededAndAFullOneIsAnAnswerNotACrash) {
  const auto probe = make_space(0);
  const int64_t one = probe->layout.fixed_bytes() + probe->layout.history_bytes(48);
  const auto space = make_space(one);
  const auto state = SequenceState::create(space);
  ASSERT_NE(state, nullptr);
  EXPECT_EQ(SequenceState::create(space), nullptr);
  EXPECT_EQ(state->fork(), nullptr);
  EXPECT_TRUE(state->reserve(48));
  EXPECT_EQ(space->pools.used_bytes(), one);
  EXPECT_FALSE(state->reserve(52));
  feed(state.get(), ids(1, 48));
  EXPECT_FALSE(state->reserve(4));
  EXPECT_TRUE(state->reserve(3)) << "no entry is completed";
  EXPECT_THROW(feed(state.get(), ids(1, 4)), InternalError);
  EXPECT_LE(space->pools.kept_bytes(), one);
}

TEST_P(SequenceStateTest, FreePiecesOfOneKindMakeWayForAnother) {
  StatePools pools({{"small", 100}, {"large", 1000}}, 2000);
  std::vector<Piece> small;
  for (int i = 0; i < 20; ++i) small.push_back(pools.acquire(0));
  EXPECT_EQ(pools.acquire(0), nullptr);
  EXPECT_EQ(pools.used_bytes(), 2000);
  small.resize(5);
  EXPECT_EQ(pools.kept_bytes(), 2000);
  Piece large = pools.acquire(1);
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(pools.used_bytes(), 1500);
  EXPECT_LE(pools.kept_bytes(), 2000);
  EXPECT_EQ(pools.acquire(1), nullptr);
  EXPECT_EQ(pools.peak_used_bytes(), 2000);
  large = nullptr;
  small.clear();
  EXPECT_EQ(pools.used_bytes(), 0);
  Piece survivor = pools.acquire(1);
  pools = StatePools({{"other", 8}}, 0);
  survivor[999] = 7;  // the pool is gone, its memory is not
}

TEST_P(SequenceStateTest, TrimmedPoolsGiveTheirMemoryBackToTheSystem) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer keeps freed memory back, so the resident size says nothing";
#endif
  const auto space = make_space(0);
  std::vector<std::unique_ptr<SequenceState>> states;
  const int64_t before = resident_bytes();
  while (space->pools.used_bytes() < int64_t{64} << 20) {
    states.push_back(SequenceState::create(space));
    ASSERT_TRUE(states.back()->reserve(256));
  }
  for (const auto& state : states) {
    for (int64_t i = 0; i < 16; ++i) {
      if (state->num_tokens() == 0) state->advance(256);
      for (const Piece& piece : state->page(i)) std::memset(piece.get(), 1, 64);
    }
  }
  const int64_t full = resident_bytes();
  if (before == 0) GTEST_SKIP() << "this system does not say how much memory is resident";
  EXPECT_GT(full - before, int64_t{48} << 20);
  states.clear();
  space->pools.trim();
  EXPECT_LT(resident_bytes() - before, int64_t{8} << 20);
}

TEST_P(SequenceStateTest, APageSizeThatDoesNotFitIsAnError) {
  EXPECT_THROW(StateLayout(w_.config, 8, false), UserError);
  EXPECT_THROW(StateLayout(w_.config, 24, false), UserError);
  EXPECT_THROW(StateLayout(w_.config, 0, false), UserError);
  EXPECT_NO_THROW(StateLayout(w_.config, 32, false));
}

}  // namespace
}  // namespace fathom
