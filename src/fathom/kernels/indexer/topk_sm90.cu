#include "fathom/kernels/indexer/indexer_sm90.h"

namespace fathom::sm90 {
namespace {

// One CTA a query. Scores become unsigned keys of the same order; the k-th largest key is found bit by
// bit from the top by counting how many keys reach a candidate, which needs no atomics on crowded bins
// and takes the same time for any distribution. Up to kPerCta scores stay in registers, longer rows
// are read again for every bit (from L2).
constexpr int kThreads = 512, kWarps = kThreads / 32, kPerThread = 32;
constexpr int kPerCta = kThreads * kPerThread;

__device__ __forceinline__ uint32_t ordered_key(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 + 0 = +0
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// Keys of one block of kPerCta scores. Warp w has 1,024 consecutive ones: lane's v[4 i + c] is number
// w * 1024 + i * 128 + lane * 4 + c. What lies beyond n has key 0, below that of every score.
__device__ __forceinline__ void load_keys(uint32_t (&v)[kPerThread], const float* row, int begin, int n,
                                          bool& nan) {
  const int at = begin + threadIdx.x / 32 * 1024 + threadIdx.x % 32 * 4;
#pragma unroll
  for (int i = 0; i < kPerThread / 4; ++i) {
    const int e = at + i * 128;
    float4 s = {0, 0, 0, 0};
    if (e + 3 < n) {
      s = __ldg(reinterpret_cast<const float4*>(row + e));
    } else {
      if (e < n) s.x = row[e];
      if (e + 1 < n) s.y = row[e + 1];
      if (e + 2 < n) s.z = row[e + 2];
    }
    nan |= s.x != s.x || s.y != s.y || s.z != s.z || s.w != s.w;
    v[4 * i] = e < n ? ordered_key(s.x) : 0;
    v[4 * i + 1] = e + 1 < n ? ordered_key(s.y) : 0;
    v[4 * i + 2] = e + 2 < n ? ordered_key(s.z) : 0;
    v[4 * i + 3] = e + 3 < n ? ordered_key(s.w) : 0;
  }
}

template <bool kOneBlock>
__global__ void __launch_bounds__(kThreads, kOneBlock ? 2 : 1) topk_kernel(const TopkSm90 p) {
  __shared__ int counts[34];
  __shared__ int warp_above[kWarps], warp_equal[kWarps];
  const int t = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n = p.num_visible == nullptr ? p.num_scores : min(p.num_visible[t], p.num_scores);
  int32_t* picks = p.picks + static_cast<int64_t>(t) * p.k;
  if (n <= p.k) {
    for (int i = threadIdx.x; i < p.k; i += kThreads) picks[i] = i < n ? i : -1;
    if (threadIdx.x == 0) p.num_picks[t] = n;
    if (p.saw_nan != nullptr)
      for (int i = threadIdx.x; i < n; i += kThreads)
        if (p.scores[t * p.scores_ld + i] != p.scores[t * p.scores_ld + i]) *p.saw_nan = 1;
    return;
  }
  if (threadIdx.x < 34) counts[threadIdx.x] = 0;
  __syncthreads();

  const float* row = p.scores + t * p.scores_ld;
  uint32_t v[kPerThread];
  bool nan = false;
  if constexpr (kOneBlock) load_keys(v, row, 0, n, nan);
  auto count_reaching = [&](uint32_t candidate, int slot) {
    int c = 0;
    if constexpr (kOneBlock) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) c += v[i] >= candidate;
    } else {
      for (int begin = 0; begin < n; begin += kPerCta) {
        load_keys(v, row, begin, n, nan);
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) c += v[i] >= candidate;
      }
    }
    c = __reduce_add_sync(0xFFFFFFFFu, c);
    if (lane == 0) atomicAdd(&counts[slot], c);  // whole numbers: any order gives the same sum
    __syncthreads();
    return counts[slot];
  };

  // `threshold`: the largest value that at least k keys reach.
  uint32_t threshold = 0;
  bool exact = false;  // exactly k keys reach it
  for (int bit = 31; bit >= 0 && !exact; --bit) {
    const uint32_t candidate = threshold | (1u << bit);
    const int c = count_reaching(candidate, bit);
    if (c >= p.k) threshold = candidate;
    exact = c == p.k;
  }
  // Take every key above the threshold, and of those equal to it the first `wanted`.
  int wanted = 1 << 30;
  if (!exact) wanted = p.k - (threshold == 0xFFFFFFFFu ? 0 : count_reaching(threshold + 1, 32));

  int above_before = 0, equal_before = 0;  // over all earlier blocks and warps
  for (int begin = 0; begin < n; begin += kPerCta) {
    if constexpr (!kOneBlock) load_keys(v, row, begin, n, nan);
    int above = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      above += v[i] > threshold;
      equal += v[i] == threshold;
    }
    above = __reduce_add_sync(0xFFFFFFFFu, above);
    equal = __reduce_add_sync(0xFFFFFFFFu, equal);
    __syncthreads();
    if (lane == 0) warp_above[warp] = above, warp_equal[warp] = equal;
    __syncthreads();
    int my_above = above_before, my_equal = equal_before;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) my_above += warp_above[w], my_equal += warp_equal[w];
      above_before += warp_above[w], equal_before += warp_equal[w];
    }
    const uint32_t below = (1u << lane) - 1;
#pragma unroll
    for (int i = 0; i < kPerThread / 4; ++i) {
      uint32_t up[4], eq[4];
      int up_before = my_above, eq_before = my_equal;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        up[c] = __ballot_sync(0xFFFFFFFFu, v[4 * i + c] > threshold);
        eq[c] = __ballot_sync(0xFFFFFFFFu, v[4 * i + c] == threshold);
        up_before += __popc(up[c] & below);
        eq_before += __popc(eq[c] & below);
        my_above += __popc(up[c]);
        my_equal += __popc(eq[c]);
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int index = begin + warp * 1024 + i * 128 + lane * 4 + c;
        const bool is_up = up[c] >> lane & 1, is_eq = eq[c] >> lane & 1;
        if (is_up || (is_eq && eq_before < wanted)) picks[up_before + min(eq_before, wanted)] = index;
        up_before += is_up;
        eq_before += is_eq;
      }
    }
    if constexpr (kOneBlock) break;
  }
  if (threadIdx.x == 0) p.num_picks[t] = p.k;
  if (nan && p.saw_nan != nullptr) *p.saw_nan = 1;
}

}  // namespace

cudaError_t topk_sm90(const TopkSm90& p, cudaStream_t stream) {
  if (p.T <= 0 || p.num_scores < 0 || p.k <= 0 || p.k > 2048 || p.scores_ld % 4 != 0 ||
      p.scores_ld < p.num_scores)
    return cudaErrorInvalidValue;
  if (p.num_scores <= kPerCta) topk_kernel<true><<<p.T, kThreads, 0, stream>>>(p);
  else topk_kernel<false><<<p.T, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace fathom::sm90
