#include "fathom/kernels/sparse_attention/sparse_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/sparse_attention/sparse_attention_cpu.h"
#include "fathom/kernels/sparse_attention/sparse_attention_cuda.h"

namespace fathom {
namespace {

// A range of a parallel loop does about this many multiply-adds.
constexpr int64_t kWorkPerRange = 1 << 17;
// Room for P and dS of one block of queries; bits do not depend on it.
constexpr int64_t kBlockFloats = 1 << 22;

struct KeyCounts {
  int64_t max_window = 0, max_keys = 0, total = 0;
  int64_t max_decoded = 0;  // entries of one query that are not floats in memory
};

KeyCounts count_keys(const SparseAttentionFwd& p) {
  KeyCounts counts;
  for (int64_t t = 0; t < p.T; ++t) {
    const int64_t window = p.window_count[t], num_picks = p.num_picks[t];
    FATHOM_ASSERT(window >= 1 && window <= p.max_window && num_picks <= p.max_picks, "query ", t,
                  " sees ", window, " window rows and ", num_picks,
                  " entries, max_window = ", p.max_window, ", max_picks = ", p.max_picks);
    FATHOM_ASSERT(num_picks >= 0 && (p.picks == nullptr || num_picks <= p.picks_stride), "query ",
                  t, " has ", num_picks, " picks in a row of ", p.picks_stride);
    counts.max_window = std::max(counts.max_window, window);
    counts.max_keys = std::max(counts.max_keys, window + num_picks);
    counts.total += window + num_picks;
    if (num_picks == 0) continue;
    const EntryFormat& format = p.segment_pages[p.segment_of[t]].format;
    FATHOM_ASSERT(format.width == p.hd, "entries of width ", format.width, ", hd = ", p.hd);
    if (format.kind != EntryKind::kF32)
      counts.max_decoded = std::max(counts.max_decoded, num_picks);
  }
  return counts;
}

int64_t grain_for(int64_t work_per_item) {
  return std::max<int64_t>(1, kWorkPerRange / std::max<int64_t>(1, work_per_item));
}

/// PairsOfKeys' memory: keys are window rows, then compressed entries.
struct SortedPairs {
  std::vector<int64_t> key_begin, next;
  std::vector<int32_t> query, slot;
};

/// Calls visit(query, key, slot) in query order.
template <typename Visit>
void for_each_pair(const SparseAttentionBwd& b, int64_t query_begin, int64_t query_end,
                   Visit&& visit) {
  const SparseAttentionFwd& p = b.fwd;
  for (int64_t t = query_begin; t < query_end; ++t) {
    int32_t slot = 0;
    for (; slot < p.window_count[t]; ++slot) visit(t, p.window_begin[t] + slot, slot);
    if (p.num_picks[t] == 0) continue;
    const int64_t first_entry = b.num_window_rows + b.entry_begin[p.segment_of[t]];
    for (int64_t j = 0; j < p.num_picks[t]; ++j, ++slot) {
      visit(t, first_entry + (p.picks != nullptr ? p.picks[t * p.picks_stride + j] : j), slot);
    }
  }
}

/// A counting sort.
PairsOfKeys sort_pairs(const SparseAttentionBwd& b, int64_t query_begin, int64_t query_end,
                       int64_t num_pairs, int64_t num_keys, SortedPairs* sorted) {
  std::vector<int64_t>& begin = sorted->key_begin;
  begin.assign(static_cast<size_t>(num_keys) + 1, 0);
  for_each_pair(b, query_begin, query_end, [&](int64_t t, int64_t key, int32_t) {
    FATHOM_ASSERT(key >= 0 && key < num_keys, "query ", t, " sees key ", key, " of ", num_keys);
    ++begin[static_cast<size_t>(key) + 1];
  });
  for (size_t key = 0; key < static_cast<size_t>(num_keys); ++key) begin[key + 1] += begin[key];
  sorted->next.assign(begin.begin(), begin.end() - 1);
  sorted->query.resize(static_cast<size_t>(num_pairs));
  sorted->slot.resize(static_cast<size_t>(num_pairs));
  for_each_pair(b, query_begin, query_end, [&](int64_t t, int64_t key, int32_t slot) {
    const size_t at = static_cast<size_t>(sorted->next[static_cast<size_t>(key)]++);
    sorted->query[at] = static_cast<int32_t>(t);
    sorted->slot[at] = slot;
  });
  return {begin.data(), sorted->query.data(), sorted->slot.data()};
}

}  // namespace

void sparse_attention_fwd(const ExecContext& ctx, const SparseAttentionFwd& p) {
  FATHOM_ASSERT(p.H > 0 && p.hd > 0, "H = ", p.H, ", hd = ", p.hd);
  if (p.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, sparse_attention_fwd, p);
  const KeyCounts counts = count_keys(p);
  const int64_t num_scratch = 2 * p.hd + std::max(counts.max_window, kAttentionChunkKeys);
  const int64_t grain = grain_for(2 * p.hd * (counts.total / p.T));
  ctx.threads->parallel_for(p.T * p.H, grain, [&](int64_t begin, int64_t end) {
    std::vector<const float*> keys(static_cast<size_t>(counts.max_keys));
    std::vector<float> scratch(static_cast<size_t>(num_scratch));
    std::vector<float> decoded(static_cast<size_t>(counts.max_decoded * p.hd));
    FATHOM_CPU_DISPATCH(ctx, sparse_attention_fwd_items, p, keys.data(), decoded.data(),
                        scratch.data(), begin, end);
  });
}

void sparse_attention_bwd(const ExecContext& ctx, const SparseAttentionBwd& b) {
  const SparseAttentionFwd& p = b.fwd;
  FATHOM_ASSERT(p.H > 0 && p.hd > 0, "H = ", p.H, ", hd = ", p.hd);
  FATHOM_ASSERT(p.T <= std::numeric_limits<int32_t>::max(), "T = ", p.T);
  if (p.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, sparse_attention_bwd, b);
  const KeyCounts counts = count_keys(p);
  FATHOM_ASSERT(counts.max_decoded == 0, "the backward pass reads entries as floats");
  FATHOM_ASSERT(b.num_entries == b.entry_begin[b.num_segments], "num_entries = ", b.num_entries,
                ", the segments have ", b.entry_begin[b.num_segments]);
  const int64_t num_keys = b.num_window_rows + b.num_entries;
  const int64_t block_pairs = std::max(counts.max_keys, kBlockFloats / (2 * p.H));

  std::vector<float> delta(static_cast<size_t>(p.T * p.H)), prob, ds;
  std::vector<int64_t> pair_begin;
  SortedPairs sorted;
  for (int64_t first = 0, last; first < p.T; first = last) {
    // As many queries as fit.
    pair_begin.assign(1, 0);
    for (last = first; last < p.T; ++last) {
      const int64_t end = pair_begin.back() + p.window_count[last] + p.num_picks[last];
      if (end > block_pairs) break;
      pair_begin.push_back(end);
    }
    const int64_t num_pairs = pair_begin.back();
    prob.resize(static_cast<size_t>(num_pairs * p.H));
    ds.resize(static_cast<size_t>(num_pairs * p.H));
    const AttentionBlock block{first,       last,      pair_begin.data(),
                               prob.data(), ds.data(), delta.data()};

    const int64_t query_grain = grain_for(3 * p.H * p.hd * num_pairs / (last - first));
    ctx.threads->parallel_for(last - first, query_grain, [&](int64_t begin, int64_t end) {
      std::vector<const float*> keys(static_cast<size_t>(counts.max_keys));
      FATHOM_CPU_DISPATCH(ctx, sparse_attention_bwd_queries, b, block, keys.data(), first + begin,
                          first + end);
    });

    const PairsOfKeys pairs = sort_pairs(b, first, last, num_pairs, num_keys, &sorted);
    // Keys are taken four together.
    const int64_t key_grain = (grain_for(2 * p.H * p.hd * num_pairs / num_keys) + 3) / 4 * 4;
    const auto add_key_gradients = [&](int64_t first_key, int64_t count, float* dkeys) {
      ctx.threads->parallel_for(count, key_grain, [&](int64_t begin, int64_t end) {
        FATHOM_CPU_DISPATCH(ctx, sparse_attention_bwd_keys, b, block, pairs, first_key + begin,
                            first_key + end, dkeys + begin * p.hd);
      });
    };
    add_key_gradients(0, b.num_window_rows, b.dwindow_kv);
    add_key_gradients(b.num_window_rows, num_keys - b.num_window_rows, b.dcompressed);
  }
  ctx.threads->parallel_for(p.H, 16, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, sparse_attention_bwd_sink, b, delta.data(), begin, end);
  });
}

}  // namespace fathom
