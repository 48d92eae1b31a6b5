#include <algorithm>

#include "fathom/kernels/indexer/indexer_sm90.h"
#include "fathom/kernels/sm90/ptx.h"
#include "fathom/kernels/sm90/tensor_map.h"
#include "fathom/kernels/sm90/wgmma.h"

namespace fathom::sm90 {
namespace {

// An item is four queries (256 rows of q: the N of the product) and kChunk entries. One warp loads,
// two warpgroups multiply 64 entries (the M) each and reduce over heads in registers: a thread has
// 16 heads of each of 2 entries and 4 queries.
constexpr int kHeads = 64, kChannels = 128, kQueries = 4;
constexpr int kTile = 128, kChunk = 2048, kStages = 3;
constexpr int kBytesQ = kQueries * kHeads * kChannels * 2;
constexpr int kBytesK = kTile * kChannels * 2;
// Everything lies in dynamic memory, which then starts on 1,024 bytes; static memory in front of it
// would cost up to 1 KiB of padding, and there is none left.
constexpr int kBytesWeights = 2 * kQueries * kHeads * 4;
constexpr int kSmemBytes = 2 * kBytesQ + kStages * kBytesK + kBytesWeights + 8 * (2 * kStages + 4);

struct Args {
  IndexerScoresSm90 p;
  int num_quads, num_chunks;
};

__device__ __forceinline__ int visible(const Args& a, int t) {
  if (t >= a.p.T) return 0;
  return a.p.num_visible == nullptr ? a.p.num_keys : min(a.p.num_visible[t], a.p.num_keys);
}

__global__ void __launch_bounds__(384, 1)
    indexer_scores_kernel(const __grid_constant__ CUtensorMap map_q,
                          const __grid_constant__ CUtensorMap map_k,
                          const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t smem_raw[];
  const uint32_t smem_q = smem_u32(smem_raw), smem_k = smem_q + 2 * kBytesQ;
  auto* weights =
      reinterpret_cast<float(*)[kQueries][kHeads]>(smem_raw + 2 * kBytesQ + kStages * kBytesK);
  const uint32_t full = smem_k + kStages * kBytesK + kBytesWeights, empty = full + 8 * kStages;
  const uint32_t q_full = empty + 8 * kStages, q_empty = q_full + 16;
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbar_init(full + 8 * s, 1);
      mbar_init(empty + 8 * s, 2);
    }
    for (int s = 0; s < 2; ++s) {
      mbar_init(q_full + 8 * s, 1);
      mbar_init(q_empty + 8 * s, 2);
    }
    mbar_init_fence();
  }
  __syncthreads();

  const int num_items = args.num_quads * args.num_chunks;
  // Entries of the item that some query sees; 0: nothing to do.
  auto item_keys = [&](int item) {
    const int t = item % args.num_quads * kQueries, first = item / args.num_quads * kChunk;
    int most = 0;
    for (int i = 0; i < kQueries; ++i) most = max(most, visible(args, t + i));
    return min(max(most - first, 0), kChunk);
  };

  if (warpgroup == 0) {
    regs_dec<40>();
    if (threadIdx.x == 0) {
      int stage = 0, turn = 0;
      uint32_t phase = 0, q_phase = 0;
      for (int item = blockIdx.x; item < num_items; item += gridDim.x) {
        const int keys = item_keys(item);
        if (keys == 0) continue;
        const int t = item % args.num_quads * kQueries, first = item / args.num_quads * kChunk;
        mbar_wait(q_empty + 8 * turn, q_phase ^ 1);
        const uint32_t weight_bytes = min(kQueries, args.p.T - t) * kHeads * 4;
        mbar_expect_tx(q_full + 8 * turn, kBytesQ + weight_bytes);
        for (int c = 0; c < 2; ++c)
          tma_load_2d(smem_q + turn * kBytesQ + c * (kBytesQ / 2), &map_q, q_full + 8 * turn,
                      c * 64, t * kHeads);
        bulk_load(smem_u32(weights[turn]), args.p.weights + int64_t{t} * kHeads, weight_bytes,
                  q_full + 8 * turn);
        if (++turn == 2) turn = 0, q_phase ^= 1;
        for (int k = 0; k < keys; k += kTile) {
          mbar_wait(empty + 8 * stage, phase ^ 1);
          mbar_expect_tx(full + 8 * stage, kBytesK);
          for (int c = 0; c < 2; ++c)
            tma_load_2d(smem_k + stage * kBytesK + c * (kBytesK / 2), &map_k, full + 8 * stage,
                        c * 64, first + k);
          if (++stage == kStages) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    regs_inc<232>();
    const int wg = warpgroup - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int quad = lane % 4;
    int stage = 0, turn = 0;
    uint32_t phase = 0, q_phase = 0;
    for (int item = blockIdx.x; item < num_items; item += gridDim.x) {
      const int keys = item_keys(item);
      if (keys == 0) continue;
      const int t = item % args.num_quads * kQueries, first = item / args.num_quads * kChunk;
      const int limit = visible(args, t + quad);  // of the query that this lane stores
      float* out = args.p.scores + (t + quad) * args.p.scores_ld;
      mbar_wait(q_full + 8 * turn, q_phase);
      const uint64_t dq = desc_swizzle128(smem_q + turn * kBytesQ, 16, 1024);
      for (int k0 = 0; k0 < keys; k0 += kTile) {
        mbar_wait(full + 8 * stage, phase);
        const uint64_t dk = desc_swizzle128(smem_k + stage * kBytesK + wg * 64 * 128, 16, 1024);
        float acc[128];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kChannels / 16; ++k)
          wgmma_bf16_ss<0, 0>(acc, dk + (k / 4 * (kBytesK / 2) + k % 4 * 32) / 16,
                              dq + (k / 4 * (kBytesQ / 2) + k % 4 * 32) / 16, k != 0);
        wgmma_commit();
        wgmma_wait<0>();
        keep(acc);
        if (threadIdx.x % 128 == 0) mbar_arrive(empty + 8 * stage);
        if (++stage == kStages) stage = 0, phase ^= 1;
        float mine0 = 0, mine1 = 0;
#pragma unroll
        for (int s = 0; s < kQueries; ++s) {
          float sum0 = 0, sum1 = 0;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float2 w = *reinterpret_cast<const float2*>(&weights[turn][s][8 * i + 2 * quad]);
            const float* v = &acc[4 * (8 * s + i)];
            sum0 = fmaf(w.x, fmaxf(v[0], 0.0f), sum0);
            sum0 = fmaf(w.y, fmaxf(v[1], 0.0f), sum0);
            sum1 = fmaf(w.x, fmaxf(v[2], 0.0f), sum1);
            sum1 = fmaf(w.y, fmaxf(v[3], 0.0f), sum1);
          }
          sum0 += __shfl_xor_sync(0xFFFFFFFFu, sum0, 1);
          sum1 += __shfl_xor_sync(0xFFFFFFFFu, sum1, 1);
          sum0 += __shfl_xor_sync(0xFFFFFFFFu, sum0, 2);
          sum1 += __shfl_xor_sync(0xFFFFFFFFu, sum1, 2);
          if (quad == s) mine0 = sum0, mine1 = sum1;
        }
        const int key = first + k0 + wg * 64 + warp * 16 + lane / 4;
        if (key < limit) out[key] = mine0;
        if (key + 8 < limit) out[key + 8] = mine1;
      }
      named_barrier(1 + wg, 128);  // all four warps have read the weights
      if (threadIdx.x % 128 == 0) mbar_arrive(q_empty + 8 * turn);
      if (++turn == 2) turn = 0, q_phase ^= 1;
    }
  }
}

}  // namespace

cudaError_t indexer_scores_sm90(const IndexerScoresSm90& p, cudaStream_t stream) {
  if (p.T <= 0 || p.num_keys < 0 || p.scores_ld < p.num_keys) return cudaErrorInvalidValue;
  if (p.num_keys == 0) return cudaSuccess;
  CUtensorMap map_q, map_k;
  cudaError_t err =
      make_tensor_map_2d(&map_q, p.q, int64_t{p.T} * kHeads, kChannels, kChannels, 2, 256, 64);
  if (err != cudaSuccess) return err;
  err = make_tensor_map_2d(&map_k, p.keys, p.num_keys, kChannels, kChannels, 2, kTile, 64);
  if (err != cudaSuccess) return err;
  int device = 0, num_sms = 0;
  err = cudaGetDevice(&device);
  if (err != cudaSuccess) return err;
  err = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (err != cudaSuccess) return err;
  err = cudaFuncSetAttribute(indexer_scores_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kSmemBytes);
  if (err != cudaSuccess) return err;
  Args args{};
  args.p = p;
  args.num_quads = (p.T + kQueries - 1) / kQueries;
  args.num_chunks = (p.num_keys + kChunk - 1) / kChunk;
  indexer_scores_kernel<<<std::min(args.num_quads * args.num_chunks, num_sms), 384, kSmemBytes,
                          stream>>>(map_q, map_k, args);
  return cudaGetLastError();
}

}  // namespace fathom::sm90
