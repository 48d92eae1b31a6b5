// Forward: a block of threads a (query, head); 16 threads a dot product, one thread per channel of
// the weighted sum, which walks the keys. Backward: the same for P, dS and dq, which go through
// memory; then a block per key, which finds the queries that see it and walks them in order. No
// atomics: every chain is that of sparse_attention.h.
#include <algorithm>

#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/quant/entry_device.cuh"
#include "fathom/kernels/sparse_attention/sparse_attention_cuda.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kHalves = kThreads / kRowLanes;
/// Floats of P and of dS at a time; bits do not depend on it.
constexpr int64_t kBlockFloats = int64_t{1} << 28;
constexpr int64_t kMaxQueries = 32768;

/// Where key k of query t's list lies: window rows, which are floats, then compressed entries.
__device__ inline const uint8_t* key_at(const SparseAttentionFwd& p, int64_t t, int64_t k) {
  const int64_t window = p.window_count[t];
  if (k < window) {
    return reinterpret_cast<const uint8_t*>(p.window_kv + (p.window_begin[t] + k) * p.hd);
  }
  const int64_t j = k - window;
  return entry_address(p.segment_pages[p.segment_of[t]],
                       p.picks != nullptr ? p.picks[t * p.picks_stride + j] : j);
}

__device__ inline const float* floats_of(const uint8_t* key) {
  return reinterpret_cast<const float*>(key);
}

/// The largest of n values in shared memory, in all threads.
__device__ inline float block_max(const float* values, int64_t n, float* scratch) {
  float best = values[0];
  for (int64_t i = threadIdx.x; i < n; i += kThreads) best = max_of(values[i], best);
  scratch[threadIdx.x] = best;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (static_cast<int>(threadIdx.x) < step) {
      scratch[threadIdx.x] = max_of(scratch[threadIdx.x + step], scratch[threadIdx.x]);
    }
    __syncthreads();
  }
  const float result = scratch[0];
  __syncthreads();
  return result;
}

/// Dynamic shared memory: the chunk's keys, s [max_chunk], a [hd].
__global__ void __launch_bounds__(kThreads)
    attention_fwd_kernel(const SparseAttentionFwd p, int64_t max_chunk) {
  extern __shared__ const uint8_t* keys[];
  __shared__ float scratch[kThreads];
  __shared__ float sum_shared;
  float* const s = reinterpret_cast<float*>(keys + max_chunk);
  float* const a = s + max_chunk;
  const int64_t item = blockIdx.x, t = item / p.H, h = item % p.H;
  const float* q = p.q + item * p.hd;
  const int64_t window = p.window_count[t], count = window + p.num_picks[t];
  EntryFormat format{};  // of compressed entries; kF32 for the window
  if (count > window) format = p.segment_pages[p.segment_of[t]].format;
  const int half = static_cast<int>(threadIdx.x) / kRowLanes;
  float m = 0.0f, l = 0.0f;
  for (int64_t begin = 0; begin < count;) {
    const bool is_first = begin == 0;
    const int64_t end =
        is_first ? window
                 : (begin + kAttentionChunkKeys < count ? begin + kAttentionChunkKeys : count);
    const int64_t n = end - begin;
    const bool is_f32 = is_first || format.kind == EntryKind::kF32;
    for (int64_t k = threadIdx.x; k < n; k += kThreads) keys[k] = key_at(p, t, begin + k);
    __syncthreads();
    for (int64_t k = half; k < n; k += kHalves) {
      const uint8_t* key = keys[k];
      const float dot =
          is_f32 ? dot_lanes(q, floats_of(key), p.hd)
                 : dot_lanes_of([&](int64_t i) { return q[i]; },
                                [&](int64_t i) { return entry_channel(format, key, i); }, p.hd);
      if (row_lane() == 0) s[k] = dot * p.scale;
    }
    __syncthreads();
    const float chunk_m = block_max(s, n, scratch);
    for (int64_t k = threadIdx.x; k < n; k += kThreads) s[k] = exp_of(s[k] - chunk_m);
    __syncthreads();
    if (half == 0) {
      float acc = 0.0f;
      for (int64_t k = row_lane(); k < n; k += kRowLanes) acc = acc + s[k];
      const float sum = reduce_lanes(acc);
      if (row_lane() == 0) sum_shared = sum;
    }
    __syncthreads();
    const float chunk_l = sum_shared;
    if (p.bf16_p) {
      for (int64_t k = threadIdx.x; k < n; k += kThreads) s[k] = round_bf16_of(s[k]);
      __syncthreads();
    }
    const float new_m = is_first ? chunk_m : chunk_m > m ? chunk_m : m;
    const float r = is_first ? 0.0f : exp_of(m - new_m);
    const float r_chunk = is_first ? 0.0f : exp_of(chunk_m - new_m);
    for (int64_t d = threadIdx.x; d < p.hd; d += kThreads) {
      float acc = 0.0f;
      if (is_f32) {
#pragma unroll 8
        for (int64_t k = 0; k < n; ++k) acc = fmaf(s[k], floats_of(keys[k])[d], acc);
      } else {
        for (int64_t k = 0; k < n; ++k) acc = fmaf(s[k], entry_channel(format, keys[k], d), acc);
      }
      a[d] = is_first ? acc : fmaf(a[d], r, acc * r_chunk);
    }
    l = is_first ? chunk_l : fmaf(l, r, chunk_l * r_chunk);
    m = new_m;
    begin = end;
    __syncthreads();
  }
  const float sink = p.sink[h];
  const float new_m = sink > m ? sink : m;
  const float r = exp_of(m - new_m);
  const float total = fmaf(l, r, exp_of(sink - new_m));
  for (int64_t d = threadIdx.x; d < p.hd; d += kThreads) p.o[item * p.hd + d] = a[d] * r / total;
  if (p.lse != nullptr && threadIdx.x == 0) p.lse[item] = new_m + log_of(total);
}

/// P and dS of queries [first, first + count): [count, H, stride].
struct BackwardBlock {
  int64_t first, count, stride;
  float* prob;
  float* ds;
  float* delta;  // [T, H]
};

__global__ void __launch_bounds__(kThreads)
    attention_bwd_queries_kernel(const SparseAttentionBwd b, const BackwardBlock block) {
  const SparseAttentionFwd& p = b.fwd;
  extern __shared__ const uint8_t* keys[];
  __shared__ float delta_shared;
  const int64_t t = block.first + blockIdx.x / p.H, h = blockIdx.x % p.H, item = t * p.H + h;
  const int64_t count = p.window_count[t] + p.num_picks[t];
  for (int64_t k = threadIdx.x; k < count; k += kThreads) keys[k] = key_at(p, t, k);
  float* const prob = block.prob + blockIdx.x * block.stride;
  float* const ds = block.ds + blockIdx.x * block.stride;
  const float* q = p.q + item * p.hd;
  const float* grad = b.do_ + item * p.hd;
  const int half = static_cast<int>(threadIdx.x) / kRowLanes;
  if (half == 0) {
    const float delta = dot_lanes(p.o + item * p.hd, grad, p.hd);
    if (row_lane() == 0) {
      delta_shared = delta;
      block.delta[item] = delta;
    }
  }
  __syncthreads();
  const float delta = delta_shared, lse = p.lse[item];
  for (int64_t k = half; k < count; k += kHalves) {
    const float* key = floats_of(keys[k]);
    const float score = dot_lanes(q, key, p.hd), dot = dot_lanes(grad, key, p.hd);
    if (row_lane() != 0) continue;
    const float p_k = exp_of(score * p.scale - lse);
    prob[k] = p_k;
    ds[k] = (p_k * (dot - delta)) * p.scale;
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < p.hd; d += kThreads) {
    float acc = 0.0f;
#pragma unroll 8
    for (int64_t k = 0; k < count; ++k) acc = fmaf(ds[k], floats_of(keys[k])[d], acc);
    b.dq[item * p.hd + d] = acc;
  }
}

/// Where in its key list query t sees the entry of its segment, or -1.
__device__ inline int64_t slot_of_entry(const SparseAttentionFwd& p, int64_t t, int64_t entry) {
  const int64_t n = p.num_picks[t];
  if (p.picks == nullptr) return entry < n ? p.window_count[t] + entry : -1;
  const int32_t* picks = p.picks + t * p.picks_stride;
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (picks[middle] < entry) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < n && picks[low] == entry ? p.window_count[t] + low : -1;
}

__device__ inline int64_t slot_of_row(const SparseAttentionFwd& p, int64_t t, int64_t row) {
  const int64_t slot = row - p.window_begin[t];
  return slot >= 0 && slot < p.window_count[t] ? slot : -1;
}

/// A block per key. kEntries: compressed entries, else window rows.
template <bool kEntries>
__global__ void __launch_bounds__(kThreads)
    attention_bwd_keys_kernel(const SparseAttentionBwd b, const BackwardBlock block) {
  const SparseAttentionFwd& p = b.fwd;
  __shared__ int32_t seen_query[kThreads], seen_slot[kThreads], warp_counts[kThreads / 32];
  const int64_t key = blockIdx.x;
  int64_t segment = 0;
  if (kEntries) {
    while (key >= b.entry_begin[segment + 1]) ++segment;
  }
  const int64_t entry = kEntries ? key - b.entry_begin[segment] : 0;
  float* const out = (kEntries ? b.dcompressed : b.dwindow_kv) + key * p.hd;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t first = 0; first < block.count; first += kThreads) {
    const int64_t i = first + threadIdx.x, t = block.first + i;
    int64_t slot = -1;
    if (i < block.count) {
      if (!kEntries) {
        slot = slot_of_row(p, t, key);
      } else if (p.segment_of[t] == segment) {
        slot = slot_of_entry(p, t, entry);
      }
    }
    const unsigned votes = __ballot_sync(0xFFFFFFFFu, slot >= 0);
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1u)), all = 0;
    for (unsigned w = 0; w < kThreads / 32; ++w) {
      if (w < warp) before += warp_counts[w];
      all += warp_counts[w];
    }
    if (slot >= 0) {
      seen_query[before] = static_cast<int32_t>(i);
      seen_slot[before] = static_cast<int32_t>(slot);
    }
    __syncthreads();
    for (int64_t d = threadIdx.x; all > 0 && d < p.hd; d += kThreads) {
      float acc = out[d];
      for (int u = 0; u < all; ++u) {
        const int64_t row = seen_query[u];
        const float* q = p.q + (block.first + row) * p.H * p.hd + d;
        const float* grad = b.do_ + (block.first + row) * p.H * p.hd + d;
        const int64_t at = row * p.H * block.stride + seen_slot[u];
        for (int64_t h = 0; h < p.H; ++h) {
          acc = fmaf(block.ds[at + h * block.stride], q[h * p.hd], acc);
          acc = fmaf(block.prob[at + h * block.stride], grad[h * p.hd], acc);
        }
      }
      out[d] = acc;
    }
    __syncthreads();
  }
}

__global__ void attention_bwd_sink_kernel(const SparseAttentionBwd b, const float* delta) {
  const SparseAttentionFwd& p = b.fwd;
  const int64_t h = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (h >= p.H) return;
  float acc = b.dsink[h];
  for (int64_t t = 0; t < p.T; ++t) {
    acc = fmaf(-delta[t * p.H + h], exp_of(p.sink[h] - p.lse[t * p.H + h]), acc);
  }
  b.dsink[h] = acc;
}

}  // namespace

namespace {

template <typename Kernel>
void allow_shared(Kernel* kernel, size_t num_bytes, const SparseAttentionFwd& p) {
  constexpr size_t kAlways = 48 * 1024, kMost = 224 * 1024;
  FATHOM_CHECK(num_bytes <= kMost, "sparse_attention: queries that see ", p.max_window,
               " window rows and ", p.max_picks, " entries are too large for this CUDA kernel");
  if (num_bytes <= kAlways) return;
  FATHOM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(num_bytes)));
}

}  // namespace

void sparse_attention_fwd(Device& device, const SparseAttentionFwd& p) {
  // A multiple of four floats, so that the arrays in shared memory share no 16 bytes.
  const int64_t max_chunk =
      (std::max(p.max_window, std::min(p.max_picks, kAttentionChunkKeys)) + 3) / 4 * 4;
  const size_t shared = static_cast<size_t>(max_chunk) * (sizeof(void*) + sizeof(float)) +
                        static_cast<size_t>(p.hd) * sizeof(float);
  allow_shared(attention_fwd_kernel, shared, p);
  FATHOM_LAUNCH(device, attention_fwd_kernel, static_cast<unsigned>(p.T * p.H), kThreads, shared, p,
                max_chunk);
}

void sparse_attention_bwd(Device& device, const SparseAttentionBwd& b) {
  const SparseAttentionFwd& p = b.fwd;
  const int64_t stride = p.max_window + p.max_picks;
  const int64_t count =
      std::clamp<int64_t>(kBlockFloats / (p.H * stride), 1, std::min(p.T, kMaxQueries));
  const Scratch<float> prob(device, count * p.H * stride), ds(device, count * p.H * stride);
  const Scratch<float> delta(device, p.T * p.H);
  const size_t shared = static_cast<size_t>(stride) * sizeof(void*);
  allow_shared(attention_bwd_queries_kernel, shared, p);
  // Blocks of queries upwards: key gradients continue from block to block.
  for (int64_t first = 0; first < p.T; first += count) {
    const BackwardBlock block{
        first, std::min(count, p.T - first), stride, prob.get(), ds.get(), delta.get()};
    FATHOM_LAUNCH(device, attention_bwd_queries_kernel, static_cast<unsigned>(block.count * p.H),
                  kThreads, shared, b, block);
    if (b.num_window_rows > 0) {
      FATHOM_LAUNCH(device, attention_bwd_keys_kernel<false>,
                    static_cast<unsigned>(b.num_window_rows), kThreads, 0, b, block);
    }
    if (b.num_entries > 0) {
      FATHOM_LAUNCH(device, attention_bwd_keys_kernel<true>, static_cast<unsigned>(b.num_entries),
                    kThreads, 0, b, block);
    }
  }
  FATHOM_LAUNCH(device, attention_bwd_sink_kernel, blocks_for(p.H, kThreads), kThreads, 0, b,
                delta.get());
}

}  // namespace fathom::cuda
