#include <algorithm>

#include "fathom/kernels/sm90/ptx.h"
#include "fathom/kernels/sm90/tensor_map.h"
#include "fathom/kernels/sm90/wgmma.h"
#include "fathom/kernels/sparse_attention/sparse_attention_bwd_sm90.h"

namespace fathom::sm90 {
namespace {

// Keys get gradients from many queries. Each (query, 64 heads) leaves its share of every key of its
// list in BF16, in its own place; then each key adds its shares up in the order of queries. That
// moves 2 KB per (query, key), all in whole rows, where read-modify-write of fp32 sums would
// move 4.
//
// The first part is one CTA per (query, 64 heads), four warpgroups:
//   0 gathers keys into a ring of two half tiles of 32 keys;
//   1 computes s = q . key and dp = do . key for a half tile, and turns them into P and dS;
//   2, 3 own 256 channels each: dq += dS . keys in registers, then for a tile of 64 keys their
//   channels
//     of dS^T q + P^T do, which go to memory.
constexpr int kDim = 512, kTile = 64, kHalf = 32, kBlockBytes = 64 * 128;

struct Shared {
  uint8_t q[8 * 8192], dout[8 * 8192], keys[8 * kBlockBytes];
  uint8_t p[2][8192], ds[2][8192];  // [64 heads][64 keys]
  uint64_t key_full[2], key_empty[2], q_full, p_full[2][2], p_empty[2];
  uint64_t q_empty;
  uint8_t holes[2][4];
};

struct Args {
  SparseAttentionSm90 f;
  const __nv_bfloat16* dout;
  float* delta;  // [T, H]
  __nv_bfloat16* dq;
  __nv_bfloat16* shares;  // [items of this pass, list, 512]
  float scale_log2;
  int first_item, num_items, head_blocks, window_tiles, list;  // list: keys of a list, padded
};

__device__ __forceinline__ int picks_of(const SparseAttentionSm90& f, int t) {
  if (f.picks == nullptr) return 0;
  return f.num_picks == nullptr ? f.picks_stride : min(f.num_picks[t], f.picks_stride);
}
// Row at place `pos` of the list, -1: hole.
__device__ __forceinline__ int list_row(const SparseAttentionSm90& f, int t, int picks, int pos) {
  if (pos < f.window_keys) return f.window_rows[int64_t{t} * f.window_keys + pos];
  const int e = pos - f.window_keys;
  return e < picks ? f.picks[int64_t{t} * f.picks_stride + e] : -1;
}

// 64 x n accumulators as BF16: rows r and r + 8, columns in pairs of 8-blocks (see gemm_sm90.cuh).
template <int n>
__device__ __forceinline__ void store_tile(const float (&v)[n], __nv_bfloat16* out, int64_t ld) {
  const int quad = threadIdx.x % 4;
  const bool odd = quad & 1;
  out += (odd ? 8 : 0) + 4 * (quad / 2);
#pragma unroll
  for (int i = 0; i < n / 4; i += 2)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t u0 = pack_bf16(v[4 * i + 2 * h], v[4 * i + 2 * h + 1]);
      const uint32_t u1 = pack_bf16(v[4 * i + 4 + 2 * h], v[4 * i + 5 + 2 * h]);
      const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, odd ? u0 : u1, 1);
      *reinterpret_cast<uint2*>(out + h * 8 * ld + 8 * i) =
          odd ? uint2{other, u1} : uint2{u0, other};
    }
}

__global__ void __launch_bounds__(512, 1)
    backward_kernel(const __grid_constant__ CUtensorMap map_q,
                    const __grid_constant__ CUtensorMap map_dout,
                    const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t smem_raw[];
  auto& shared = *reinterpret_cast<Shared*>(smem_raw);
  const uint32_t smem_q = smem_u32(shared.q), smem_do = smem_u32(shared.dout);
  const uint32_t ring = smem_u32(shared.keys), smem_p = smem_u32(shared.p),
                 smem_ds = smem_u32(shared.ds);
  const uint32_t key_full = smem_u32(shared.key_full), key_empty = smem_u32(shared.key_empty);
  const uint32_t q_full = smem_u32(&shared.q_full), q_empty = smem_u32(&shared.q_empty);
  const uint32_t p_full = smem_u32(shared.p_full), p_empty = smem_u32(shared.p_empty);
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int row = warp * 16 + lane / 4, quad = lane % 4;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) {
      mbar_init(key_full + 8 * s, 128 + 4);
      mbar_init(key_empty + 8 * s, 8);
      mbar_init(p_full + 16 * s, 128);
      mbar_init(p_full + 16 * s + 8, 128);
      mbar_init(p_empty + 8 * s, 8);
    }
    mbar_init(q_full, 1);
    mbar_init(q_empty, 12);
    mbar_init_fence();
  }
  __syncthreads();
  const int end = args.first_item + args.num_items;
  auto tiles_of = [&](int item) {
    const int picks = picks_of(args.f, item / args.head_blocks);
    return args.window_tiles + (picks + kTile - 1) / kTile;
  };

  if (warpgroup == 0) {
    regs_dec<40>();
    int slot = 0;
    uint32_t phase = 0, q_phase = 0;
    for (int item = args.first_item + blockIdx.x; item < end; item += gridDim.x) {
      const int t = item / args.head_blocks, picks = picks_of(args.f, t),
                halves = 2 * tiles_of(item);
      if (threadIdx.x == 0) {
        mbar_wait(q_empty, q_phase ^ 1);
        mbar_expect_tx(q_full, 2 * 8 * 8192);
        for (int c = 0; c < 8; ++c) {
          tma_load_2d(smem_q + c * 8192, &map_q, q_full, c * 64, item * 64);
          tma_load_2d(smem_do + c * 8192, &map_dout, q_full, c * 64, item * 64);
        }
        const int next_item = item + gridDim.x;
        if (next_item < end) {
          prefetch_l2(args.f.q + int64_t{next_item} * 64 * kDim, 64 * kDim * 2);
          prefetch_l2(args.dout + int64_t{next_item} * 64 * kDim, 64 * kDim * 2);
        }
      }
      __syncwarp();
      q_phase ^= 1;
      int next = lane < 8 ? list_row(args.f, t, picks, warp * 8 + lane) : -1;
      for (int j = 0; j < halves; ++j) {
        const int mine = next;
        if (j + 1 < halves && lane < 8)
          next = list_row(args.f, t, picks, (j + 1) * kHalf + warp * 8 + lane);
        const bool window = j * kHalf < args.f.window_keys;
        const char* base =
            static_cast<const char*>(window ? args.f.window.data : args.f.entries.data) + lane * 16;
        const uint32_t tile = ring + lane / 8 * kBlockBytes + (slot * kHalf + warp * 8) * 128;
        mbar_wait(key_empty + 8 * slot, phase ^ 1);
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          const int key = __shfl_sync(0xFFFFFFFFu, mine, r);
          const char* src = base + int64_t{max(key, 0)} * (kDim * 2);
          const uint32_t dst = tile + r * 128 + ((lane % 8) ^ r) * 16;
          cp_async_16(dst, src, key >= 0);
          cp_async_16(dst + 4 * kBlockBytes, src + 512, key >= 0);
        }
        const uint32_t valid = __ballot_sync(0xFFFFFFFFu, mine >= 0);
        if (lane == 0) shared.holes[slot][warp] = static_cast<uint8_t>(valid);
        mbar_arrive_cp_async(key_full + 8 * slot);
        if (lane == 0) mbar_arrive(key_full + 8 * slot);
        if (++slot == 2) slot = 0, phase ^= 1;
      }
    }
  } else if (warpgroup == 1) {
    regs_dec<88>();
    int slot = 0, buffer = 0;
    uint32_t phase = 0, q_phase = 0, p_phase = 0;
    for (int item = args.first_item + blockIdx.x; item < end; item += gridDim.x) {
      const int tiles = tiles_of(item);
      const int64_t stat = int64_t{item} * 64 + row;
      const float lse0 = args.f.lse[stat] * 1.44269504f, lse1 = args.f.lse[stat + 8] * 1.44269504f;
      const float delta0 = args.delta[stat], delta1 = args.delta[stat + 8];
      mbar_wait(q_full, q_phase);
      for (int j = 0; j < 2 * tiles; ++j) {
        mbar_wait(key_full + 8 * slot, phase);
        fence_async();
        const uint64_t dk = desc_swizzle128(ring + slot * kHalf * 128, 16, 1024);
        uint64_t dq = desc_swizzle128(smem_q, 16, 1024), dd = desc_swizzle128(smem_do, 16, 1024);
        asm volatile("" : "+l"(dq), "+l"(dd));  // opaque: not all descriptors at once in registers
        float s[16], dp[16];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 32; ++k)
          wgmma_bf16_ss<0, 0>(s, dq + (k / 4 * 8192 + k % 4 * 32) / 16,
                              dk + (k / 4 * kBlockBytes + k % 4 * 32) / 16, k != 0);
#pragma unroll
        for (int k = 0; k < 32; ++k)
          wgmma_bf16_ss<0, 0>(dp, dd + (k / 4 * 8192 + k % 4 * 32) / 16,
                              dk + (k / 4 * kBlockBytes + k % 4 * 32) / 16, k != 0);
        wgmma_commit();
        wgmma_wait<0>();
        keep(s);
        keep(dp);
        const uint32_t valid = *reinterpret_cast<const uint32_t*>(shared.holes[slot]) >> (2 * quad);
        uint32_t p[8], ds[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float pv[4], dv[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool is_key = valid >> (8 * i + e % 2) & 1;
            const float lse = e < 2 ? lse0 : lse1, delta = e < 2 ? delta0 : delta1;
            pv[e] = is_key ? exp2_approx(fmaf(s[4 * i + e], args.scale_log2, -lse)) : 0.0f;
            dv[e] = pv[e] * (dp[4 * i + e] - delta) * args.f.scale;
          }
          p[2 * i] = pack_bf16(pv[0], pv[1]), p[2 * i + 1] = pack_bf16(pv[2], pv[3]);
          ds[2 * i] = pack_bf16(dv[0], dv[1]), ds[2 * i + 1] = pack_bf16(dv[2], dv[3]);
        }
        const int half = j % 2;
        if (half == 0) mbar_wait(p_empty + 8 * buffer, p_phase ^ 1);
        const uint32_t prow = (warp * 16 + lane / 8 % 2 * 8 + lane % 8) * 128 + buffer * 8192;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t chunk = ((4 * half + 2 * i + lane / 16) ^ (lane % 8)) * 16;
          stmatrix_x4(smem_p + prow + chunk, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]);
          stmatrix_x4(smem_ds + prow + chunk, ds[4 * i], ds[4 * i + 1], ds[4 * i + 2],
                      ds[4 * i + 3]);
        }
        fence_async();
        mbar_arrive(p_full + 16 * buffer + 8 * half);
        if (++slot == 2) slot = 0, phase ^= 1;
        if (half == 1) {
          buffer ^= 1;
          if (buffer == 0) p_phase ^= 1;
        }
      }
      q_phase ^= 1;
      __syncwarp();
      if (lane == 0) mbar_arrive(q_empty);
    }
  } else {
    regs_inc<192>();
    const int side = warpgroup - 2;  // channels 256 side .. 256 side + 255
    float dq[2][64];
    int slot = 0, buffer = 0;
    uint32_t p_phase = 0;
    for (int item = args.first_item + blockIdx.x; item < end; item += gridDim.x) {
      const int tiles = tiles_of(item);
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          mbar_wait(p_full + 16 * buffer + 8 * half, p_phase);
          fence_async();
          const uint64_t ds = desc_swizzle128(smem_ds + buffer * 8192 + half * 64, 16, 1024);
          const uint64_t dk = desc_swizzle128(ring + side * 4 * kBlockBytes + slot * kHalf * 128,
                                              kBlockBytes, 1024);
          keep(dq[0]);
          keep(dq[1]);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int n = 0; n < 2; ++n)
              wgmma_bf16_ss<0, 1>(dq[n], ds + k * 2, dk + (2 * n * kBlockBytes + k * 2048) / 16,
                                  (j | half | k) != 0);
          wgmma_commit();
          wgmma_wait<0>();
          keep(dq[0]);
          keep(dq[1]);
          if (lane == 0) mbar_arrive(key_empty + 8 * slot);
          slot ^= 1;
        }
        __nv_bfloat16* share =
            args.shares +
            ((int64_t{item - args.first_item} * args.list + j * kTile + row) * kDim + side * 256);
#pragma unroll 1
        for (int c = 0; c < 4; ++c) {
          float v[32];
          const uint32_t block = (side * 4 + c) * 8192;
          const uint64_t ds = desc_swizzle128(smem_ds + buffer * 8192, 16, 1024);
          const uint64_t p = desc_swizzle128(smem_p + buffer * 8192, 16, 1024);
          const uint64_t q = desc_swizzle128(smem_q + block, 16, 1024);
          const uint64_t g = desc_swizzle128(smem_do + block, 16, 1024);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma_bf16_ss<1, 1>(v, ds + k * 2048 / 16, q + k * 2048 / 16, k != 0);
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma_bf16_ss<1, 1>(v, p + k * 2048 / 16, g + k * 2048 / 16, 1);
          wgmma_commit();
          wgmma_wait<0>();
          keep(v);
          if (c == 3 && lane == 0) mbar_arrive(p_empty + 8 * buffer);
          store_tile(v, share + c * 64, kDim);
        }
        buffer ^= 1;
        if (buffer == 0) p_phase ^= 1;
      }
      if (lane == 0) mbar_arrive(q_empty);
      __nv_bfloat16* out = args.dq + (int64_t{item} * 64 + row) * kDim + side * 256;
      store_tile(dq[0], out, kDim);
      store_tile(dq[1], out + 128, kDim);
    }
  }
}

// delta[t, h] = sum_d o do: one warp a row, 16 products a lane upwards, then a tree.
__global__ void delta_kernel(const __nv_bfloat16* o, const __nv_bfloat16* dout, float* delta,
                             int64_t rows) {
  const int64_t r = blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32;
  if (r >= rows) return;
  const int lane = threadIdx.x % 32;
  const auto* a = reinterpret_cast<const uint4*>(o + r * kDim) + lane;
  const auto* b = reinterpret_cast<const uint4*>(dout + r * kDim) + lane;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 x = a[32 * i], y = b[32 * i];
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      sum = fmaf(__uint_as_float(xs[w] << 16), __uint_as_float(ys[w] << 16), sum);
      sum = fmaf(__uint_as_float(xs[w] & 0xFFFF0000u), __uint_as_float(ys[w] & 0xFFFF0000u), sum);
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
  if (lane == 0) delta[r] = sum;
}

__global__ void dsink_kernel(const float* delta, const float* lse, const float* sink, float* dsink,
                             int T, int H) {
  __shared__ float sums[256];
  const int h = blockIdx.x;
  float sum = 0;
  for (int t = threadIdx.x; t < T; t += 256) {
    const int64_t r = int64_t{t} * H + h;
    sum = fmaf(-delta[r], exp2f((sink[h] - lse[r]) * 1.44269504f), sum);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int d = 128; d > 0; d /= 2) {
    if (threadIdx.x < d) sums[threadIdx.x] += sums[threadIdx.x + d];
    __syncthreads();
  }
  if (threadIdx.x == 0) dsink[h] += sums[0];
}

// ---- who contributes to a key -------------------------------------------------------------------
// Keys are numbered entries first, then window rows. Bit t % 32 of seen[t / 32][key]: query t of
// the pass has the key. From that follows every contribution's place in the order of queries, with
// no other atomics than ors.
struct Lists {
  SparseAttentionSm90 f;
  uint2* seen;  // [words, keys] x: bits, y: contributions of earlier words
  int* begin;   // [keys + 1] contributions of earlier keys
  int* places;  // for every contribution: query of the pass * list + place in its list
  int first_query, num_queries, words, keys, entries, list;
};

template <class F>
__device__ __forceinline__ void for_each_place(const Lists& l, F&& f) {
  const int t = blockIdx.x, query = l.first_query + t;
  const int picks = picks_of(l.f, query);
  for (int pos = threadIdx.x; pos < l.f.window_keys + picks; pos += blockDim.x) {
    const int row = list_row(l.f, query, picks, pos);
    if (row >= 0) f(t, pos, pos < l.f.window_keys ? l.entries + row : row);
  }
}
__global__ void mark_kernel(const Lists l) {
  for_each_place(l, [&](int t, int, int key) {
    atomicOr(&l.seen[int64_t{t / 32} * l.keys + key].x, 1u << (t % 32));
  });
}
__global__ void count_kernel(const Lists l) {
  const int key = blockIdx.x * blockDim.x + threadIdx.x;
  if (key >= l.keys) return;
  int sum = 0;
  for (int w0 = 0; w0 < l.words; w0 += 16) {
    uint32_t bits[16];
#pragma unroll
    for (int w = 0; w < 16; ++w)
      bits[w] = w0 + w < l.words ? l.seen[int64_t{w0 + w} * l.keys + key].x : 0;
#pragma unroll
    for (int w = 0; w < 16; ++w)
      if (w0 + w < l.words) {
        l.seen[int64_t{w0 + w} * l.keys + key].y = static_cast<uint32_t>(sum);
        sum += __popc(bits[w]);
      }
  }
  l.begin[key + 1] = sum;
}
__global__ void scan_kernel(const Lists l) {  // begin[i + 1] becomes the running sum; one CTA
  __shared__ int warps[32];
  __shared__ int carry;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) carry = 0, l.begin[0] = 0;
  __syncthreads();
  for (int base = 0; base < l.keys; base += 1024) {
    const int i = base + threadIdx.x;
    int sum = i < l.keys ? l.begin[i + 1] : 0;
    for (int d = 1; d < 32; d *= 2) {
      const int up = __shfl_up_sync(0xFFFFFFFFu, sum, d);
      if (lane >= d) sum += up;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    int before = carry;
    for (int w = 0; w < warp; ++w) before += warps[w];
    if (i < l.keys) l.begin[i + 1] = before + sum;
    __syncthreads();
    if (threadIdx.x == 1023) carry = before + sum;
    __syncthreads();
  }
}
__global__ void place_kernel(const Lists l) {
  for_each_place(l, [&](int t, int pos, int key) {
    const uint2 word = l.seen[int64_t{t / 32} * l.keys + key];
    const int at =
        l.begin[key] + static_cast<int>(word.y) + __popc(word.x & ((1u << (t % 32)) - 1));
    l.places[at] = t * l.list + pos;
  });
}

// One CTA a key: 4 channels a thread, one chain of additions over contributions.
__global__ void __launch_bounds__(128)
    sum_kernel(const Lists l, const __nv_bfloat16* shares, int head_blocks, float* dwindow,
               float* dentries) {
  const int key = blockIdx.x;
  const int begin = l.begin[key], end = l.begin[key + 1];
  if (begin == end) return;
  float* out = (key < l.entries ? dentries + int64_t{key} * kDim
                                : dwindow + int64_t{key - l.entries} * kDim) +
               threadIdx.x * 4;
  float4 sum = *reinterpret_cast<float4*>(out);
  auto add = [&](uint2 v) {
    sum.x += __uint_as_float(v.x << 16);
    sum.y += __uint_as_float(v.x & 0xFFFF0000u);
    sum.z += __uint_as_float(v.y << 16);
    sum.w += __uint_as_float(v.y & 0xFFFF0000u);
  };
  auto load = [&](int64_t row) {
    return __ldcs(reinterpret_cast<const uint2*>(shares + row * kDim + threadIdx.x * 4));
  };
  int i = begin;
  if (head_blocks == 1) {
    for (; i + 8 <= end; i += 8) {
      uint2 v[8];
#pragma unroll
      for (int u = 0; u < 8; ++u) v[u] = load(__ldg(l.places + i + u));
#pragma unroll
      for (int u = 0; u < 8; ++u) add(v[u]);
    }
  }
  for (; i < end; ++i) {
    const int t = l.places[i] / l.list, pos = l.places[i] - t * l.list;
    for (int b = 0; b < head_blocks; ++b) add(load((int64_t{t} * head_blocks + b) * l.list + pos));
  }
  *reinterpret_cast<float4*>(out) = sum;
}

// Where things lie in the workspace.
struct Layout {
  size_t delta, seen, begin, places, shares, total;
};
Layout layout_of(const SparseAttentionBwdSm90& p) {
  const size_t queries = static_cast<size_t>(std::min(p.queries_per_pass, p.fwd.T));
  const size_t keys = static_cast<size_t>(p.num_window_rows) + p.num_entries;
  const size_t picks =
      p.fwd.picks == nullptr ? 0 : (p.fwd.picks_stride + kTile - 1) / kTile * kTile;
  const size_t list = p.fwd.window_keys + picks, words = (queries + 31) / 32;
  Layout l{};
  size_t at = 0;
  auto take = [&](size_t bytes) {
    const size_t here = at;
    at += (bytes + 255) / 256 * 256;
    return here;
  };
  l.delta = take(size_t(p.fwd.T) * p.fwd.H * 4);
  l.seen = take(words * keys * 8);
  l.begin = take((keys + 1) * 4);
  l.places = take(queries * list * 4);
  l.shares = take(queries * (p.fwd.H / 64) * list * kDim * 2);
  l.total = at;
  return l;
}

bool valid(const SparseAttentionBwdSm90& p) {
  const auto& f = p.fwd;
  return f.layout == KvLayout::kBf16 && f.T > 0 && f.H > 0 && f.H % 64 == 0 && f.window_keys > 0 &&
         f.window_keys % kTile == 0 && f.lse != nullptr && f.out != nullptr &&
         p.queries_per_pass > 0 && (f.picks == nullptr || p.dentries != nullptr);
}

}  // namespace

size_t sparse_attention_bwd_sm90_bytes(const SparseAttentionBwdSm90& p) {
  return layout_of(p).total;
}

cudaError_t sparse_attention_bwd_sm90(const SparseAttentionBwdSm90& p, cudaStream_t stream) {
  const Layout where = layout_of(p);
  if (!valid(p) || p.workspace_bytes < where.total) return cudaErrorInvalidValue;
  const auto& f = p.fwd;
  auto* base = static_cast<char*>(p.workspace);
  CUtensorMap map_q, map_dout;
  const int64_t rows = int64_t{f.T} * f.H;
  cudaError_t err = make_tensor_map_2d(&map_q, f.q, rows, kDim, kDim, 2, 64, 64);
  if (err == cudaSuccess) err = make_tensor_map_2d(&map_dout, p.dout, rows, kDim, kDim, 2, 64, 64);
  int device = 0, num_sms = 0;
  if (err == cudaSuccess) err = cudaGetDevice(&device);
  if (err == cudaSuccess)
    err = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (err == cudaSuccess)
    err = cudaFuncSetAttribute(backward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(Shared));
  if (err != cudaSuccess) return err;

  Args args{};
  args.f = f;
  args.dout = p.dout;
  args.delta = reinterpret_cast<float*>(base + where.delta);
  args.dq = p.dq;
  args.shares = reinterpret_cast<__nv_bfloat16*>(base + where.shares);
  args.scale_log2 = f.scale * 1.44269504f;
  args.head_blocks = f.H / 64;
  args.window_tiles = f.window_keys / kTile;
  args.list =
      f.window_keys + (f.picks == nullptr ? 0 : (f.picks_stride + kTile - 1) / kTile * kTile);
  Lists lists{};
  lists.f = f;
  lists.seen = reinterpret_cast<uint2*>(base + where.seen);
  lists.begin = reinterpret_cast<int*>(base + where.begin);
  lists.places = reinterpret_cast<int*>(base + where.places);
  lists.entries = p.num_entries;
  lists.keys = p.num_window_rows + p.num_entries;
  lists.list = args.list;

  delta_kernel<<<static_cast<unsigned>((rows + 7) / 8), 256, 0, stream>>>(
      f.out, p.dout, reinterpret_cast<float*>(base + where.delta), rows);
  for (int first = 0; first < f.T; first += p.queries_per_pass) {
    const int queries = std::min(p.queries_per_pass, f.T - first);
    args.first_item = first * args.head_blocks;
    args.num_items = queries * args.head_blocks;
    lists.first_query = first;
    lists.num_queries = queries;
    lists.words = (queries + 31) / 32;
    backward_kernel<<<std::min(args.num_items, num_sms), 512, sizeof(Shared), stream>>>(
        map_q, map_dout, args);
    err = cudaMemsetAsync(lists.seen, 0, size_t(lists.words) * lists.keys * 8, stream);
    if (err != cudaSuccess) return err;
    mark_kernel<<<queries, 128, 0, stream>>>(lists);
    count_kernel<<<(lists.keys + 63) / 64, 64, 0, stream>>>(lists);
    scan_kernel<<<1, 1024, 0, stream>>>(lists);
    place_kernel<<<queries, 128, 0, stream>>>(lists);
    sum_kernel<<<lists.keys, 128, 0, stream>>>(lists, args.shares, args.head_blocks, p.dwindow,
                                               p.dentries);
  }
  dsink_kernel<<<f.H, 256, 0, stream>>>(args.delta, f.lse, f.sink, p.dsink, f.T, f.H);
  return cudaGetLastError();
}

}  // namespace fathom::sm90
