// A block of threads scores one query's entries, 16 threads a dot product, and picks the largest by
// their sortable bits: four passes of 8 bits find the k-th score, one more writes everything above
// it and, of what equals it, the lowest indices.
#include <algorithm>

#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/indexer/indexer_cuda.h"
#include "fathom/kernels/quant/entry_device.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kHalves = kThreads / kRowLanes;
/// Room for the scores of one group of queries; results do not depend on it.
constexpr int64_t kGroupScores = 1 << 26;

__global__ void indexer_scores_kernel(const IndexerTopk p, int64_t first_query, float* all_scores) {
  const int64_t t = first_query + blockIdx.y;
  const int64_t visible = p.num_visible[t];
  if (visible <= p.topk) return;
  const int64_t w = blockIdx.x * static_cast<int64_t>(kHalves) + threadIdx.x / kRowLanes;
  if (w >= visible) return;
  const KeyPages pages = p.segment_pages[p.segment_of[t]];
  const uint8_t* key = entry_address(pages, w);
  float score = 0.0f;
  for (int64_t h = 0; h < p.Hi; ++h) {
    const float* q = p.q + (t * p.Hi + h) * p.di;
    const float dot =
        pages.format.kind == EntryKind::kF32
            ? dot_lanes(q, reinterpret_cast<const float*>(key), p.di)
            : dot_lanes_of([&](int64_t i) { return q[i]; },
                           [&](int64_t i) { return entry_channel(pages.format, key, i); }, p.di);
    // max(0, x) is x when x is NaN, so a NaN reaches the score.
    score = fmaf(p.weights[t * p.Hi + h], max_of(0.0f, dot), score);
  }
  if (row_lane() == 0) all_scores[blockIdx.y * p.max_visible + w] = score;
}

/// Larger scores have larger keys; -0 and +0 the same.
__device__ inline uint32_t sortable(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The number of set flags in threads before this one, and in all of them.
__device__ inline int count_before(bool flag, int* warp_counts, int* all) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned votes = __ballot_sync(0xFFFFFFFFu, flag);
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1u));
  *all = 0;
  for (unsigned w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += warp_counts[w];
    *all += warp_counts[w];
  }
  __syncthreads();
  return before;
}

__global__ void indexer_select_kernel(const IndexerTopk p, int64_t first_query,
                                      const float* all_scores, DeviceFault* fault) {
  const int64_t t = first_query + blockIdx.x;
  const int64_t visible = p.num_visible[t], topk = p.topk;
  int32_t* picks = p.picks + t * topk;
  if (visible <= topk) {
    for (int64_t j = threadIdx.x; j < topk; j += kThreads) {
      picks[j] = j < visible ? static_cast<int32_t>(j) : -1;
    }
    if (threadIdx.x == 0) p.num_picks[t] = static_cast<int32_t>(visible);
    return;
  }
  if (threadIdx.x == 0) p.num_picks[t] = static_cast<int32_t>(topk);
  const float* scores = all_scores + blockIdx.x * p.max_visible;
  __shared__ int counts[256];
  __shared__ int warp_counts[kThreads / 32];
  __shared__ uint32_t prefix_shared;
  __shared__ int64_t wanted_shared;
  uint32_t prefix = 0;    // of the k-th largest key
  int64_t wanted = topk;  // its rank among keys with this prefix
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) counts[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < visible; i += kThreads) {
      if (shift == 24 && scores[i] != scores[i]) {
        report_fault(fault, DeviceFaultKind::kIndexerScore, t, i);
      }
      const uint32_t key = sortable(scores[i]);
      if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&counts[(key >> shift) & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      int64_t left = wanted;
      while (digit > 0 && counts[digit] < left) left -= counts[digit--];
      prefix_shared = prefix << 8 | static_cast<uint32_t>(digit);
      wanted_shared = left;
    }
    __syncthreads();
    prefix = prefix_shared;
    wanted = wanted_shared;
    __syncthreads();
  }
  int64_t taken = 0, ties_taken = 0;
  for (int64_t first = 0; first < visible; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const uint32_t key = i < visible ? sortable(scores[i]) : 0u;
    const bool is_tie = i < visible && key == prefix;
    int num_ties, num_picked;
    const int ties_before = count_before(is_tie, warp_counts, &num_ties);
    const bool picked =
        i < visible && (key > prefix || (is_tie && ties_taken + ties_before < wanted));
    const int before = count_before(picked, warp_counts, &num_picked);
    // A NaN may break the count: nothing is written beyond the row.
    if (picked && taken + before < topk) picks[taken + before] = static_cast<int32_t>(i);
    taken += num_picked;
    ties_taken += num_ties;
  }
}

}  // namespace

void indexer_topk(Device& device, const IndexerTopk& p) {
  if (p.T == 0) return;
  const int64_t width = std::max<int64_t>(1, p.max_visible);
  const int64_t group = std::clamp<int64_t>(kGroupScores / width, 1, std::min<int64_t>(p.T, 32768));
  const Scratch<float> scores(device, p.max_visible > p.topk ? group * width : 1);
  for (int64_t first = 0; first < p.T; first += group) {
    const unsigned count = static_cast<unsigned>(std::min(group, p.T - first));
    if (p.max_visible > p.topk) {
      const dim3 grid(blocks_for(p.max_visible, kHalves), count);
      FATHOM_LAUNCH(device, indexer_scores_kernel, grid, kThreads, 0, p, first, scores.get());
    }
    FATHOM_LAUNCH(device, indexer_select_kernel, count, kThreads, 0, p, first, scores.get(),
                  device.fault());
  }
}

}  // namespace fathom::cuda
