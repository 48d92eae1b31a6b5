#include "fathom/kernels/indexer/indexer_sm90.h"

namespace fathom::sm90 {
namespace {

// One CTA a query. Scores become unsigned keys of the same order; the k-th largest key is found by
// histograms of its upper 11, middle 11 and lower 10 bits, each over the keys that share what was
// found so far. Counts are whole numbers, so the order of the atomics changes nothing. Up to
// kPerCta scores stay in registers, longer rows are read again for every step (from L2). Atomics on
// crowded bins are what costs, so the first histogram has kCopies counters a bin, and rows in
// registers leave out what cannot be picked: of k disjoint groups of scores, every largest one
// reaches the smallest largest one, so the k-th largest score does too.
constexpr int kThreads = 512, kWarps = kThreads / 32, kPerThread = 32;
constexpr int kPerCta = kThreads * kPerThread;
constexpr int kBins = 2048, kCopies = 4;

// The sum turns -0 into +0 and every NaN into the positive one, whose key is the largest of all.
constexpr uint32_t kNanKey = 0xFFFFFFFFu;
__device__ __forceinline__ uint32_t ordered_key(float score) {
  const uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0f));
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// Keys of one block of kPerCta scores. Warp w has 1,024 consecutive ones: lane's v[4 i + c] is
// number w * 1024 + i * 128 + lane * 4 + c. What lies beyond n has key 0, below that of every
// score.
template <int n_v>
__device__ __forceinline__ void load_keys(uint32_t (&v)[n_v], const float* row, int begin, int n) {
  const int at = begin + threadIdx.x / 32 * 1024 + threadIdx.x % 32 * 4;
  float4 s[kPerThread / 4];  // all loads first: they overlap. A row can be read to a multiple of 4.
  if (begin + kPerCta <= n) {
#pragma unroll
    for (int i = 0; i < kPerThread / 4; ++i)
      s[i] = __ldg(reinterpret_cast<const float4*>(row + at + i * 128));
#pragma unroll
    for (int i = 0; i < kPerThread / 4; ++i) {
      v[4 * i] = ordered_key(s[i].x);
      v[4 * i + 1] = ordered_key(s[i].y);
      v[4 * i + 2] = ordered_key(s[i].z);
      v[4 * i + 3] = ordered_key(s[i].w);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerThread / 4; ++i) {
    s[i] = {0, 0, 0, 0};
    if (at + i * 128 < n) s[i] = __ldg(reinterpret_cast<const float4*>(row + at + i * 128));
  }
#pragma unroll
  for (int i = 0; i < kPerThread / 4; ++i) {
    const int left = n - at - i * 128;
    v[4 * i] = left > 0 ? ordered_key(s[i].x) : 0;
    v[4 * i + 1] = left > 1 ? ordered_key(s[i].y) : 0;
    v[4 * i + 2] = left > 2 ? ordered_key(s[i].z) : 0;
    v[4 * i + 3] = left > 3 ? ordered_key(s[i].w) : 0;
  }
}

// Finds the bin in which the `wanted`-th largest key lies (bins downwards). Returns it, takes from
// `wanted` what lies above, and tells whether the bin's keys are wanted to the last.
template <int copies>
__device__ __forceinline__ int find_bin(const int* bins, int& wanted, bool& all, int* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int top =
      kBins - 1 - 4 * static_cast<int>(threadIdx.x);  // this thread's bins: top .. top - 3
  int count[4], mine = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    count[i] = 0;
#pragma unroll
    for (int c = 0; c < copies; ++c) count[i] += bins[(top - i) * copies + c];
    mine += count[i];
  }
  int upto = mine;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(0xFFFFFFFFu, upto, d);
    if (lane >= d) upto += other;
  }
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) upto += w < warp ? scratch[w] : 0;
  int before = upto - mine;
  if (before < wanted && wanted <= upto) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (before < wanted && wanted <= before + count[i]) {
        scratch[kWarps] = top - i;
        scratch[kWarps + 1] = wanted - before;
        scratch[kWarps + 2] = wanted == before + count[i];
      }
      before += count[i];
    }
  }
  __syncthreads();
  wanted = scratch[kWarps + 1];
  all = scratch[kWarps + 2] != 0;
  return scratch[kWarps];
}

template <bool kOneBlock>
__global__ void __launch_bounds__(kThreads, kOneBlock ? 2 : 1) topk_kernel(const TopkSm90 p) {
  __shared__ int bins[kBins * (kCopies + 1)];  // the last step uses the first one's again
  __shared__ int scratch[kWarps + 3];
  __shared__ int warp_above[kWarps], warp_equal[kWarps];
  const int t = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n = p.num_visible == nullptr ? p.num_scores : min(p.num_visible[t], p.num_scores);
  int32_t* picks = p.picks + static_cast<int64_t>(t) * p.k;
  const float* row = p.scores + t * p.scores_ld;
  if (n <= p.k) {
    for (int i = threadIdx.x; i < p.k; i += kThreads) picks[i] = i < n ? i : -1;
    if (threadIdx.x == 0) p.num_picks[t] = n;
    if (p.saw_nan != nullptr)
      for (int i = threadIdx.x; i < n; i += kThreads)
        if (row[i] != row[i]) *p.saw_nan = 1;
    return;
  }
  uint32_t v[kPerThread];
  if constexpr (kOneBlock) load_keys(v, row, 0, n);
  for (int i = threadIdx.x; i < kBins * (kCopies + 1); i += kThreads) bins[i] = 0;
  uint32_t floor = 0;  // no lower key is picked
  if constexpr (kOneBlock) {
    uint32_t most[4];  // of the quarters of this thread's keys
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      most[g] = v[8 * g];
#pragma unroll
      for (int i = 1; i < 8; ++i) most[g] = max(most[g], v[8 * g + i]);
    }
    const uint32_t low = max(most[0], most[1]), high = max(most[2], most[3]);
    uint32_t least = p.k <= kThreads       ? max(low, high)
                     : p.k <= 2 * kThreads ? min(low, high)
                                           : min(min(most[0], most[1]), min(most[2], most[3]));
    least = __reduce_min_sync(0xFFFFFFFFu, least);
    if (lane == 0) scratch[warp] = static_cast<int>(least);
    __syncthreads();
    floor = static_cast<uint32_t>(scratch[0]);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) floor = min(floor, static_cast<uint32_t>(scratch[w]));
  }
  __syncthreads();

  // Counts digit (key >> shift) & (kBins - 1) of the keys whose higher bits are `prefix`.
  auto count_digits = [&](int step, int shift, uint32_t prefix) {
    auto add = [&] {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        if (step == 0) {
          if (v[i] >= floor) atomicAdd(&bins[(v[i] >> 21) * kCopies + lane % kCopies], 1);
        } else if (v[i] >> (shift + (step == 1 ? 11 : 10)) == prefix) {
          atomicAdd(&bins[(step == 1 ? kBins * kCopies : 0) +
                          (v[i] >> shift & (step == 1 ? 2047 : 1023))],
                    1);
        }
      }
    };
    if constexpr (kOneBlock) {
      add();
    } else {
      for (int begin = 0; begin < n; begin += kPerCta) {
        load_keys(v, row, begin, n);
        add();
      }
    }
    __syncthreads();
  };
  int wanted = p.k;  // of the keys that share the prefix
  bool all = false;
  count_digits(0, 21, 0);
  uint32_t threshold = static_cast<uint32_t>(find_bin<kCopies>(bins, wanted, all, scratch)) << 21;
  if (!all) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    count_digits(1, 10, threshold >> 21);
    threshold |= static_cast<uint32_t>(find_bin<1>(bins + kBins * kCopies, wanted, all, scratch))
                 << 10;
    if (!all) {
      count_digits(2, 0, threshold >> 10);
      threshold |= static_cast<uint32_t>(find_bin<1>(bins, wanted, all, scratch));
    }
  }
  // When all: take every key that reaches the threshold. Otherwise every key above it, and of those
  // equal to it the first `wanted`.
  int above_before = 0, equal_before = 0;  // over all earlier blocks and warps
  for (int begin = 0; begin < n; begin += kPerCta) {
    if constexpr (!kOneBlock) load_keys(v, row, begin, n);
    if (all) {
      // Byte i of the pair: how many of v[4 i ..] are taken; a warp's 128 at most fit.
      uint32_t lo = 0, hi = 0;
#pragma unroll
      for (int i = 0; i < kPerThread / 8; ++i)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          lo += v[4 * i + c] >= threshold ? 1u << 8 * i : 0;
          hi += v[4 * (i + 4) + c] >= threshold ? 1u << 8 * i : 0;
        }
      const uint32_t mine_lo = lo, mine_hi = hi;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const uint32_t a = __shfl_up_sync(0xFFFFFFFFu, lo, d),
                       b = __shfl_up_sync(0xFFFFFFFFu, hi, d);
        if (lane >= d) lo += a, hi += b;
      }
      const uint32_t total_lo = __shfl_sync(0xFFFFFFFFu, lo, 31),
                     total_hi = __shfl_sync(0xFFFFFFFFu, hi, 31);
      lo -= mine_lo, hi -= mine_hi;
      __syncthreads();
      if (lane == 0) {
        int sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += (total_lo >> 8 * i & 255) + (total_hi >> 8 * i & 255);
        warp_above[warp] = sum;
      }
      __syncthreads();
      int base = above_before;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        base += w < warp ? warp_above[w] : 0;
        above_before += warp_above[w];
      }
#pragma unroll
      for (int i = 0; i < kPerThread / 4; ++i) {
        int at = base + static_cast<int>((i < 4 ? lo : hi) >> 8 * (i % 4) & 255);
        base += static_cast<int>((i < 4 ? total_lo : total_hi) >> 8 * (i % 4) & 255);
        if (((i < 4 ? mine_lo : mine_hi) >> 8 * (i % 4) & 255) != 0) {
#pragma unroll
          for (int c = 0; c < 4; ++c)
            if (v[4 * i + c] >= threshold)
              picks[at++] = begin + warp * 1024 + i * 128 + lane * 4 + c;
        }
      }
    } else {
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
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) my_above += warp_above[w], my_equal += warp_equal[w];
        above_before += warp_above[w], equal_before += warp_equal[w];
      }
      const uint32_t below = (1u << lane) - 1;
#pragma unroll 1
      for (int i = 0; i < kPerThread / 4; ++i) {
        uint32_t k[4];  // v[4 i ..]: a run-time index would put v into local memory
#pragma unroll
        for (int c = 0; c < 4; ++c) k[c] = v[c];
#pragma unroll
        for (int u = 0; u + 4 < kPerThread; ++u) v[u] = v[u + 4];
        int up_before = my_above, eq_before = my_equal;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const uint32_t up = __ballot_sync(0xFFFFFFFFu, k[c] > threshold);
          const uint32_t eq = __ballot_sync(0xFFFFFFFFu, k[c] == threshold);
          up_before += __popc(up & below);
          eq_before += __popc(eq & below);
          my_above += __popc(up);
          my_equal += __popc(eq);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const bool is_up = k[c] > threshold, is_eq = k[c] == threshold;
          if (is_up || (is_eq && eq_before < wanted))
            picks[up_before + min(eq_before, wanted)] =
                begin + warp * 1024 + i * 128 + lane * 4 + c;
          up_before += is_up;
          eq_before += is_eq;
        }
      }
    }
  }
  if (threadIdx.x == 0) {
    p.num_picks[t] = p.k;
    // The highest bin of the first step holds nothing but NaN; no later step touches it.
    int nan = 0;
    for (int c = 0; c < kCopies; ++c) nan |= bins[(kNanKey >> 21) * kCopies + c];
    if (p.saw_nan != nullptr && nan != 0) *p.saw_nan = 1;
  }
}

}  // namespace

cudaError_t topk_sm90(const TopkSm90& p, cudaStream_t stream) {
  if (p.T <= 0 || p.num_scores < 0 || p.k <= 0 || p.k > 2048 || p.scores_ld % 4 != 0 ||
      p.scores_ld < p.num_scores)
    return cudaErrorInvalidValue;
  if (p.num_scores <= kPerCta)
    topk_kernel<true><<<p.T, kThreads, 0, stream>>>(p);
  else
    topk_kernel<false><<<p.T, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace fathom::sm90
