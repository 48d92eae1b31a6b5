#include "fathom/kernels/indexer/indexer.h"

#include <limits>

#include "fathom/base/error.h"
#include "fathom/kernels/indexer/indexer_ref.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/quant/entry_codec.h"

namespace fathom {
namespace {

std::vector<int32_t> select(const std::vector<float>& scores, int64_t topk) {
  const int64_t n = static_cast<int64_t>(scores.size());
  std::vector<int32_t> picks(static_cast<size_t>(std::min(topk, n)));
  select_topk(scores.data(), n, topk, picks.data());
  return picks;
}

TEST(SelectTopkTest, TiesZerosInfinitiesAndShortRows) {
  using Picks = std::vector<int32_t>;
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(select({3, 1, 2}, 2), (Picks{0, 2}));
  EXPECT_EQ(select({1, 5, 5, 5, 0}, 2), (Picks{1, 2}));  // equal: the lower index
  EXPECT_EQ(select({1, 5, 5, 5, 9}, 3), (Picks{1, 2, 4}));
  EXPECT_EQ(select({-0.0f, 0.0f, -0.0f, 0.0f}, 2), (Picks{0, 1}));
  EXPECT_EQ(select({-1, 0.0f, -0.0f, -1}, 1), (Picks{1}));
  EXPECT_EQ(select({-1, -0.0f, 0.0f, -1}, 1), (Picks{1}));
  EXPECT_EQ(select({-inf, inf, -inf, 1}, 3), (Picks{0, 1, 3}));
  EXPECT_EQ(select({2, 1}, 5), (Picks{0, 1}));
  EXPECT_EQ(select({}, 5), (Picks{}));
  EXPECT_EQ(select(std::vector<float>(100, 0.0f), 3), (Picks{0, 1, 2}));
}

TEST(SelectTopkTest, MatchesASortForRandomScoresWithManyTies) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 generator(seed);
    const size_t n = 1 + generator() % 300;
    std::vector<float> scores;
    for (size_t i = 0; i < n; ++i) {
      scores.push_back(static_cast<float>(generator() % (1 + seed)) * (seed % 3 == 0 ? -1.f : 1.f));
    }
    for (const int64_t topk : {1, 7, 64, 65, 200}) {
      EXPECT_EQ(select(scores, topk), select_topk_ref(to_double(scores), topk)) << "seed " << seed;
    }
  }
}

TEST(SelectTopkTest, NaNIsAnError) { EXPECT_THROW(select({1, std::nanf(""), 2}, 2), UserError); }

struct Problem {
  int64_t T, Hi, di, topk;
  std::vector<float> q, weights;
  std::vector<std::vector<float>> page_memory;
  std::vector<std::vector<const void*>> tables;
  std::vector<KeyPages> pages;
  std::vector<std::vector<float>> keys;  // of each segment
  std::vector<int32_t> segment_of, num_visible;

  Problem(int64_t Hi_, int64_t di_, int64_t topk_, const std::vector<int64_t>& entries,
          const std::vector<std::pair<int32_t, int32_t>>& queries)
      : T(static_cast<int64_t>(queries.size())), Hi(Hi_), di(di_), topk(topk_) {
    q = random_floats(T * Hi * di, -1, 1, 1);
    weights = random_floats(T * Hi, -0.3f, 1, 2);
    for (size_t s = 0; s < entries.size(); ++s) {
      keys.push_back(random_floats(entries[s] * di, -1, 1, 3 + static_cast<uint32_t>(s)));
      tables.emplace_back();
      for (int64_t e = 0; e < entries[s]; e += 5) {
        const auto begin = keys[s].begin() + e * di;
        page_memory.emplace_back(begin, begin + std::min<int64_t>(5, entries[s] - e) * di);
        tables.back().push_back(page_memory.back().data());
      }
    }
    for (const auto& table : tables) pages.push_back({table.data(), 5, f32_entries(di)});
    for (const auto& [segment, visible] : queries) {
      segment_of.push_back(segment), num_visible.push_back(visible);
    }
  }

  IndexerTopk params(std::vector<int32_t>* picks, std::vector<int32_t>* num_picks) const {
    picks->assign(static_cast<size_t>(T * topk), 77);
    num_picks->assign(static_cast<size_t>(T), 77);
    return {.q = q.data(),
            .weights = weights.data(),
            .segment_pages = pages.data(),
            .segment_of = segment_of.data(),
            .num_visible = num_visible.data(),
            .T = T,
            .Hi = Hi,
            .di = di,
            .topk = topk,
            .max_visible =
                num_visible.empty() ? 0 : *std::max_element(num_visible.begin(), num_visible.end()),
            .picks = picks->data(),
            .num_picks = num_picks->data()};
  }
};

std::vector<Problem> problems() {
  std::vector<std::pair<int32_t, int32_t>> few = {{0, 0}, {1, 3}, {0, 8}, {0, 9}, {1, 40}, {2, 0}};
  std::vector<std::pair<int32_t, int32_t>> ramp;
  for (int32_t t = 0; t < 300; ++t) ramp.emplace_back(0, (t + 1) / 4);
  std::vector<Problem> list;
  list.emplace_back(4, 32, 8, std::vector<int64_t>{10, 40, 0}, few);
  list.emplace_back(3, 7, 5, std::vector<int64_t>{75}, ramp);
  list.emplace_back(2, 24, 16, std::vector<int64_t>{1500},
                    std::vector<std::pair<int32_t, int32_t>>{{0, 1500}, {0, 700}});
  return list;
}

TEST(IndexerTest, PicksAreThoseOfTheFp64ScoresUpToRounding) {
  for (const Problem& p : problems()) {
    std::vector<int32_t> first;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<int32_t> picks, num_picks;
      indexer_topk(ctx, p.params(&picks, &num_picks));
      for (int64_t t = 0; t < p.T; ++t) {
        const size_t i = static_cast<size_t>(t);
        const int64_t visible = p.num_visible[i];
        const int64_t count = std::min(p.topk, visible);
        ASSERT_EQ(num_picks[i], count) << name << ", query " << t;
        const auto& all_keys = p.keys[static_cast<size_t>(p.segment_of[i])];
        const auto at = p.q.begin() + t * p.Hi * p.di;
        const auto w = p.weights.begin() + t * p.Hi;
        const std::vector<double> scores = indexer_scores_ref(
            p.Hi, p.di, {at, at + p.Hi * p.di}, {w, w + p.Hi},
            std::vector<double>(all_keys.begin(), all_keys.begin() + visible * p.di));
        // Heads add up products below di, each with di/16 + 4 roundings, and Hi of their own.
        const double Hi = static_cast<double>(p.Hi), di = static_cast<double>(p.di);
        const double error = Hi * di * (di / 16 + 5 + Hi) * 0x1p-24;
        std::vector<bool> in(static_cast<size_t>(visible));
        for (int64_t j = 0; j < p.topk; ++j) {
          const int32_t pick = picks[static_cast<size_t>(t * p.topk + j)];
          if (j >= count) {
            ASSERT_EQ(pick, -1) << name;
            continue;
          }
          ASSERT_TRUE(pick >= 0 && pick < visible) << name << ": pick " << pick;
          ASSERT_TRUE(j == 0 || picks[static_cast<size_t>(t * p.topk + j - 1)] < pick) << name;
          in[static_cast<size_t>(pick)] = true;
        }
        double lowest_in = 1e30, highest_out = -1e30;
        for (size_t e = 0; e < in.size(); ++e) {
          if (in[e]) {
            lowest_in = std::min(lowest_in, scores[e]);
          } else {
            highest_out = std::max(highest_out, scores[e]);
          }
        }
        EXPECT_GE(lowest_in, highest_out - 2 * error) << name << ", query " << t;
      }
      if (first.empty()) first = picks;
      expect_same_bits(picks, first, name);
      // One query at a time.
      for (int64_t t = 0; t < p.T; ++t) {
        std::vector<int32_t> alone(static_cast<size_t>(p.topk));
        int32_t count = -1;
        IndexerTopk one = p.params(&picks, &num_picks);
        one.q += t * p.Hi * p.di, one.weights += t * p.Hi, one.segment_of += t;
        one.num_visible += t, one.T = 1, one.picks = alone.data(), one.num_picks = &count;
        indexer_topk(ctx, one);
        expect_same_bits(
            alone,
            std::vector<int32_t>(first.begin() + t * p.topk, first.begin() + (t + 1) * p.topk),
            name + " alone");
      }
    });
  }
}

TEST(IndexerTest, StoredKeysGiveThePicksOfTheirFloats) {
  for (Problem& p : problems()) {
    for (const EntryFormat& f : {bf16_entries(p.di), fp8_entries(p.di, p.di, 16)}) {
      for_each_context([&](const ExecContext& ctx, const std::string& name) {
        std::vector<std::vector<uint8_t>> stored;
        std::vector<std::vector<const void*>> tables;
        std::vector<KeyPages> stored_pages;
        size_t page = 0;
        for (const auto& table : p.tables) {
          tables.emplace_back();
          for (size_t i = 0; i < table.size(); ++i) {
            std::vector<float>& rows = p.page_memory[page++];
            const int64_t count = static_cast<int64_t>(rows.size()) / p.di;
            stored.emplace_back(static_cast<size_t>(count * f.num_bytes));
            encode_entries(f, rows.data(), count, stored.back().data());
            decode_entries(ctx, f, stored.back().data(), count, rows.data());
            tables.back().push_back(stored.back().data());
          }
        }
        for (const auto& table : tables) stored_pages.push_back({table.data(), 5, f});
        std::vector<int32_t> picks, num_picks, want, want_num;
        indexer_topk(ctx, p.params(&want, &want_num));
        IndexerTopk params = p.params(&picks, &num_picks);
        params.segment_pages = stored_pages.data();
        indexer_topk(ctx, params);
        expect_same_bits(picks, want, name);
      });
    }
  }
}

TEST(IndexerTest, EqualScoresPickTheLowestIndices) {
  // Keys that every head's query points away from: all products negative, all scores zero. Then one
  // entry with a negative score among them, which ranks below the zeros.
  Problem p(2, 16, 3, {12}, {{0, 12}});
  p.q.assign(p.q.size(), 1.0f);
  p.weights = {1.0f, -2.0f};
  std::vector<float> keys(12 * 16, -1.0f);
  for (int64_t d = 0; d < 16; ++d) keys[static_cast<size_t>(16 + d)] = 1.0f;
  const void* page = keys.data();
  p.pages = {{&page, 12, f32_entries(16)}};
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<int32_t> picks, num_picks;
    indexer_topk(ctx, p.params(&picks, &num_picks));
    expect_same_bits(picks, {0, 2, 3}, name);
  });
}

TEST(IndexerTest, NaNAndNoQueries) {
  Problem p(2, 16, 3, {12}, {{0, 2}, {0, 12}});
  p.q[2 * 16] = std::nanf("");  // query 1
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<int32_t> picks, num_picks;
    try {
      indexer_topk(ctx, p.params(&picks, &num_picks));
      ADD_FAILURE() << name << ": no error";
    } catch (const UserError& e) {
      EXPECT_NE(std::string(e.what()).find("query 1"), std::string::npos) << e.what();
    }
    IndexerTopk none = p.params(&picks, &num_picks);
    none.T = 0;
    indexer_topk(ctx, none);
    EXPECT_EQ(num_picks[0], 77) << name;
  });
}

}  // namespace
}  // namespace fathom
