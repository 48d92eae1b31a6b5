#include "fathom/kernels/indexer/indexer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/indexer/indexer_cpu.h"
#include "fathom/kernels/indexer/indexer_cuda.h"

namespace fathom {
namespace {

// Room for the scores of one group of queries; results do not depend on it.
constexpr int64_t kGroupScores = 1 << 22;

/// One piece of scoring work: up to kIndexerEntryBlock entries of a query.
struct ScoreBlock {
  int64_t query, entry_begin, entry_end;
  float* scores;
};

void take_all(const IndexerTopk& p, int64_t t, int64_t count) {
  int32_t* picks = p.picks + t * p.topk;
  for (int64_t j = 0; j < p.topk; ++j) picks[j] = j < count ? static_cast<int32_t>(j) : -1;
  p.num_picks[t] = static_cast<int32_t>(count);
}

// Up to this many picks, keeping the best so far in order is faster than partitioning all scores.
constexpr int64_t kInsertionTopk = 64;

/// The best k so far, by score and then index; most entries do not beat the last of them.
void select_by_insertion(const float* scores, int64_t n, int64_t k, int32_t* picks) {
  float best[kInsertionTopk];
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    // An equal score with a higher index never displaces.
    if (count == k && !(score > best[k - 1])) continue;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && score > best[at - 1]; --at) {
      best[at] = best[at - 1];
      picks[at] = picks[at - 1];
    }
    best[at] = score;
    picks[at] = static_cast<int32_t>(i);
  }
  std::sort(picks, picks + k);
}

/// Everything above the k-th largest score, and of what equals it the lowest indices.
void select_by_threshold(const float* scores, int64_t n, int64_t k, int32_t* picks) {
  std::vector<float> sorted(scores, scores + n);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
  const float threshold = sorted[static_cast<size_t>(k - 1)];
  int64_t above = 0;
  for (int64_t i = 0; i < n; ++i) above += scores[i] > threshold;
  int64_t ties_left = k - above;
  int64_t taken = 0;
  for (int64_t i = 0; i < n && taken < k; ++i) {
    const bool tie = scores[i] == threshold && ties_left > 0;
    if (!tie && !(scores[i] > threshold)) continue;
    picks[taken++] = static_cast<int32_t>(i);
    ties_left -= tie;
  }
}

}  // namespace

void select_topk(const float* scores, int64_t n, int64_t topk, int32_t* picks) {
  const int64_t k = std::min(topk, n);
  if (k == 0) return;
  for (int64_t i = 0; i < n; ++i) {
    FATHOM_CHECK(!std::isnan(scores[i]), "indexer: the score of entry ", i,
                 " is NaN; look for "
                 "NaN or infinity in the indexer's weights or in its input");
  }
  if (k <= kInsertionTopk) {
    select_by_insertion(scores, n, k, picks);
  } else {
    select_by_threshold(scores, n, k, picks);
  }
}

void indexer_topk(const ExecContext& ctx, const IndexerTopk& p) {
  FATHOM_ASSERT(p.topk > 0 && p.Hi > 0 && p.di > 0, "topk = ", p.topk, ", Hi = ", p.Hi,
                ", di = ", p.di);
  FATHOM_DEVICE_DISPATCH(ctx, indexer_topk, p);
  std::vector<ScoreBlock> blocks;
  std::vector<float> scores;
  struct Scored {
    int64_t query, first_score;
  };
  std::vector<Scored> scored;
  bool is_encoded = false;
  for (int64_t first = 0, last; first < p.T; first = last) {
    // The next group: at least one query, then as many as fit.
    scored.clear();
    int64_t num_scores = 0;
    for (last = first; last < p.T; ++last) {
      const int64_t visible = p.num_visible[last];
      FATHOM_ASSERT(visible >= 0 && visible <= p.max_visible, "query ", last, " sees ", visible,
                    " entries, max_visible = ", p.max_visible);
      const EntryFormat& format = p.segment_pages[p.segment_of[last]].format;
      FATHOM_ASSERT(visible == 0 || format.width == p.di, "keys of width ", format.width,
                    ", di = ", p.di);
      is_encoded = is_encoded || format.kind != EntryKind::kF32;
      if (visible <= p.topk) {
        take_all(p, last, visible);
        continue;
      }
      if (num_scores > 0 && num_scores + visible > kGroupScores) break;
      scored.push_back({last, num_scores});
      num_scores += visible;
    }
    scores.resize(static_cast<size_t>(num_scores));
    blocks.clear();
    for (const Scored& s : scored) {
      const int64_t visible = p.num_visible[s.query];
      for (int64_t w = 0; w < visible; w += kIndexerEntryBlock) {
        blocks.push_back({s.query, w, std::min(w + kIndexerEntryBlock, visible),
                          scores.data() + s.first_score + w});
      }
    }
    const int64_t work = kIndexerEntryBlock * p.Hi * p.di;
    const int64_t grain = std::max<int64_t>(1, (1 << 17) / work);
    ctx.threads->parallel_for(
        static_cast<int64_t>(blocks.size()), grain, [&](int64_t begin, int64_t end) {
          std::vector<float> decoded(
              static_cast<size_t>(is_encoded ? kIndexerEntryBlock * p.di : 0));
          for (int64_t i = begin; i < end; ++i) {
            const ScoreBlock& b = blocks[static_cast<size_t>(i)];
            FATHOM_CPU_DISPATCH(ctx, indexer_score_entries, p, b.query, b.entry_begin, b.entry_end,
                                decoded.data(), b.scores);
          }
        });
    ctx.threads->parallel_for(
        static_cast<int64_t>(scored.size()), 16, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const Scored& s = scored[static_cast<size_t>(i)];
            with_context(str_cat("query ", s.query), [&] {
              select_topk(scores.data() + s.first_score, p.num_visible[s.query], p.topk,
                          p.picks + s.query * p.topk);
            });
            p.num_picks[s.query] = static_cast<int32_t>(p.topk);
          }
        });
  }
}

}  // namespace fathom
