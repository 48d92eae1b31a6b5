#include <algorithm>

#include "fathom/kernels/sm90/ptx.h"
#include "fathom/kernels/sm90/tensor_map.h"
#include "fathom/kernels/sm90/wgmma.h"
#include "fathom/kernels/sparse_attention/sparse_attention_sm90.h"

namespace fathom::sm90 {
namespace {

// One CTA computes one item at a time: a query and 64 of its heads. Four warpgroups:
//   0 gathers keys into a ring of tiles of 64 keys (and decodes FP8);
//   1 multiplies queries and keys, and turns scores into P;
//   2, 3 multiply P with the left and right 256 channels of the keys, and hold that result.
// Barriers carry tiles from one to the next; the two products of different tiles overlap. What
// bounds it is the bandwidth of shared memory, so most of the queries are in registers (README).
constexpr int kDim = 512;
constexpr int kTile = 64;
constexpr float kRescaleAbove = 8.0f;  // log2: p stays below 2^8, exact enough in BF16 and fp32

template <int kQReg_, int kStages_, bool kFp8_>
struct AttentionConfig {
  static constexpr int kQReg = kQReg_;  // how many blocks of 64 query channels are in registers
  static constexpr int kStages = kStages_;
  static constexpr bool kFp8 = kFp8_;
  // P times keys waits for the next tile's first product: side by side both would take twice as
  // long, and nothing would be left to do beside the exponentials. Not where the producer is the
  // slowest.
  static constexpr bool kPvLater = !kFp8;
  static constexpr int kThreads = 512;
  static constexpr int kQBlocks = 8 - kQReg;
  static constexpr int kRows = kStages * kTile;
  static constexpr int kBlockBytes = kRows * 128;  // 64 channels of all keys in the ring
  static constexpr int kBytesQ = kQBlocks * 8192;
  static constexpr int kBytesK = 8 * kBlockBytes;
  static constexpr int kBytesP = 64 * kTile * 2;
  // Registers a thread of each role. What the roles take together must fit into what the kernel
  // gets at its start, or the warpgroups that ask for more wait for ever.
  static constexpr int kOutputRegs = 160;
  static constexpr int kProducerRegs = kFp8 ? 80 : 32;
  static constexpr int kScoreRegs = 512 - 2 * kOutputRegs - kProducerRegs;
};

// What the score group tells the output groups about a tile, beside P.
struct TileRows {
  float alpha[64];  // what earlier results are multiplied with
  float sum[64];    // sum of p
  float max[64];    // reference m
};

// All of shared memory: with none declared outside it starts on 1,024 bytes, as swizzling needs.
template <class C>
struct Shared {
  uint8_t q[C::kBytesQ], keys[C::kBytesK], p[C::kBytesP];
  uint64_t full[C::kStages], empty[C::kStages], q_full, p_full, p_empty;
  TileRows rows;
  uint8_t holes[C::kStages][8];  // byte b: which of keys 8 b .. 8 b + 7 are keys
};

struct Args {
  SparseAttentionSm90 p;
  float scale_log2;
  int num_items, head_blocks, window_tiles;
};

__device__ __forceinline__ int picks_of(const Args& a, int t) {
  if (a.p.picks == nullptr) return 0;
  return a.p.num_picks == nullptr ? a.p.picks_stride : min(a.p.num_picks[t], a.p.picks_stride);
}
__device__ __forceinline__ int tiles_of(const Args& a, int t) {
  return a.window_tiles + (picks_of(a, t) + kTile - 1) / kTile;
}

// Row of the list at place `pos` of tile j, -1: hole.
__device__ __forceinline__ int list_row(const Args& a, int t, int picks, int j, int pos) {
  if (j < a.window_tiles) return a.p.window_rows[int64_t{t} * a.p.window_keys + j * kTile + pos];
  const int e = (j - a.window_tiles) * kTile + pos;
  return e < picks ? a.p.picks[int64_t{t} * a.p.picks_stride + e] : -1;
}

// Two e4m3 codes (bytes 1 and 3 of `codes`) times 2^120 * scale as bf16 pair: the code's bits moved
// into a bf16 are its value times 2^-120; both products are exact.
__device__ __forceinline__ uint32_t decode_pair(uint32_t codes, __nv_bfloat162 scale) {
  const uint32_t bits = (codes & 0x80008000u) | ((codes & 0x7F007F00u) >> 4);
  const __nv_bfloat162 two120 =
      __halves2bfloat162(__ushort_as_bfloat16(0x7B80), __ushort_as_bfloat16(0x7B80));
  __nv_bfloat162 v = *reinterpret_cast<const __nv_bfloat162*>(&bits);
  v = __hmul2(__hmul2(v, two120), scale);
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <class C>
__device__ __forceinline__ void produce_bf16(const Args& a, Shared<C>& shared) {
  const uint32_t ring = smem_u32(shared.keys), full = smem_u32(shared.full),
                 empty = smem_u32(shared.empty);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int slot = 0, next = -1;
  uint32_t phase = 0;
  for (int item = blockIdx.x; item < a.num_items; item += gridDim.x) {
    const int t = item / a.head_blocks;
    const int picks = picks_of(a, t), tiles = tiles_of(a, t);
    if (item + gridDim.x < a.num_items && threadIdx.x == 0)
      prefetch_l2(a.p.q + int64_t{item + static_cast<int>(gridDim.x)} * 64 * kDim, 64 * kDim * 2);
    if (item == static_cast<int>(blockIdx.x) && lane < 16)
      next = list_row(a, t, picks, 0, warp * 16 + lane);
    for (int j = 0; j < tiles; ++j) {
      const int mine = next;
      if (lane <
          16) {  // one tile ahead, also into the next item, whose list starts with the window
        if (j + 1 < tiles)
          next = list_row(a, t, picks, j + 1, warp * 16 + lane);
        else if (item + gridDim.x < a.num_items)
          next = list_row(a, (item + gridDim.x) / a.head_blocks, 0, 0, warp * 16 + lane);
      }
      const char* base =
          static_cast<const char*>(j < a.window_tiles ? a.p.window.data : a.p.entries.data) +
          lane * 16;
      const uint32_t tile = ring + (lane / 8) * C::kBlockBytes + (slot * kTile + warp * 16) * 128;
      mbar_wait(empty + 8 * slot, phase ^ 1);
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const int row = __shfl_sync(0xFFFFFFFFu, mine, r);
        const char* src = base + int64_t{max(row, 0)} * (kDim * 2);
        const uint32_t dst = tile + r * 128 + ((lane % 8) ^ (r % 8)) * 16;
        cp_async_16(dst, src, row >= 0);
        cp_async_16(dst + 4 * C::kBlockBytes, src + 512, row >= 0);
      }
      const uint32_t valid = __ballot_sync(0xFFFFFFFFu, mine >= 0);
      if (lane == 0)
        reinterpret_cast<uint16_t*>(shared.holes[slot])[warp] = static_cast<uint16_t>(valid);
      mbar_arrive_cp_async(full + 8 * slot);
      if (lane == 0) mbar_arrive(full + 8 * slot);
      if (++slot == C::kStages) slot = 0, phase ^= 1;
    }
  }
}

template <class C>
__device__ __forceinline__ void produce_fp8(const Args& a, Shared<C>& shared) {
  // Half a tile at a time, four threads a key. Each loads every fourth 16-byte piece, one half
  // ahead.
  const uint32_t ring = smem_u32(shared.keys), full = smem_u32(shared.full),
                 empty = smem_u32(shared.empty);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int key = lane / 4, sub = lane % 4;
  struct Raw {
    uint4 codes[7], rotary[2];
    uint2 scales;
    uint32_t valid;
  };
  auto load = [&](Raw& raw, int t, int picks, int half) {
    const int j = half / 2;
    const int mine = lane < 8 ? list_row(a, t, picks, j, half % 2 * 32 + warp * 8 + lane) : -1;
    raw.valid = __ballot_sync(0xFFFFFFFFu, mine >= 0);
    const int row = __shfl_sync(0xFFFFFFFFu, mine, key);
    const KvRows& rows = j < a.window_tiles ? a.p.window : a.p.entries;
    const int page_entries = 1 << rows.log2_page;
    const int in_page = row & (page_entries - 1);
    const char* page = static_cast<const char*>(rows.data) +
                       int64_t{max(row, 0) >> rows.log2_page} * rows.page_bytes;
    const char* data = page + in_page * 576;
    const uint4 zero = {0, 0, 0, 0};
    raw.scales = {0, 0};
    if (row >= 0)
      raw.scales = *reinterpret_cast<const uint2*>(page + page_entries * 576 + in_page * 8);
#pragma unroll
    for (int i = 0; i < 7; ++i)
      raw.codes[i] = row >= 0 ? *reinterpret_cast<const uint4*>(data + (4 * i + sub) * 16) : zero;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      raw.rotary[i] =
          row >= 0 ? *reinterpret_cast<const uint4*>(data + 448 + (4 * i + sub) * 16) : zero;
  };
  auto store = [](uint32_t dst, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(x), "r"(y), "r"(z),
                 "r"(w)
                 : "memory");
  };
  int slot = 0;
  uint32_t phase = 0;
  for (int item = blockIdx.x; item < a.num_items; item += gridDim.x) {
    const int t = item / a.head_blocks;
    const int picks = picks_of(a, t), halves = 2 * tiles_of(a, t);
    Raw raw;
    load(raw, t, picks, 0);
    for (int half = 0; half < halves; ++half) {
      if (half % 2 == 0) mbar_wait(empty + 8 * slot, phase ^ 1);
      const int tile_row = half % 2 * 32 + warp * 8 + key;
      const uint32_t dst = ring + (slot * kTile + tile_row) * 128;
#pragma unroll
      for (int i = 0; i < 7; ++i) {  // block i of 64 channels, channels 16 sub .. 16 sub + 15
        const uint32_t e = __byte_perm(raw.scales.x, raw.scales.y, i) & 0xFF;
        const uint16_t bits = static_cast<uint16_t>(e == 0 ? 0x40 : e << 7);
        const __nv_bfloat162 scale =
            __halves2bfloat162(__ushort_as_bfloat16(bits), __ushort_as_bfloat16(bits));
        const uint32_t words[4] = {raw.codes[i].x, raw.codes[i].y, raw.codes[i].z, raw.codes[i].w};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t v[4];
#pragma unroll
          for (int w = 0; w < 2; ++w) {
            v[2 * w] = decode_pair(__byte_perm(words[2 * h + w], 0, 0x1404), scale);
            v[2 * w + 1] = decode_pair(__byte_perm(words[2 * h + w], 0, 0x3424), scale);
          }
          store(dst + i * C::kBlockBytes + ((2 * sub + h) ^ key) * 16, v[0], v[1], v[2], v[3]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
        store(dst + 7 * C::kBlockBytes + ((4 * i + sub) ^ key) * 16, raw.rotary[i].x,
              raw.rotary[i].y, raw.rotary[i].z, raw.rotary[i].w);
      if (lane == 0) shared.holes[slot][half % 2 * 4 + warp] = static_cast<uint8_t>(raw.valid);
      if (half % 2 == 1) {
        fence_async();
        mbar_arrive(full + 8 * slot);
        if (++slot == C::kStages) slot = 0, phase ^= 1;
      }
      if (half + 1 < halves) load(raw, t, picks, half + 1);
    }
  }
}

template <int kRegs>
__device__ __forceinline__ void set_regs() {  // from 128
  if constexpr (kRegs > 128)
    regs_inc<kRegs>();
  else if constexpr (kRegs < 128)
    regs_dec<kRegs>();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    sparse_attention_sm90_kernel(const __grid_constant__ CUtensorMap map_q,
                                 const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t smem_raw[];
  auto& shared = *reinterpret_cast<Shared<C>*>(smem_raw);
  TileRows& rows = shared.rows;
  const uint32_t smem_q = smem_u32(shared.q), ring = smem_u32(shared.keys),
                 smem_p = smem_u32(shared.p);
  const uint32_t full = smem_u32(shared.full), empty = smem_u32(shared.empty);
  const uint32_t q_full = smem_u32(&shared.q_full), p_full = smem_u32(&shared.p_full);
  const uint32_t p_empty = smem_u32(&shared.p_empty);
  const int warpgroup = threadIdx.x / 128;
  const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  const int row = warp * 16 + lane / 4, quad = lane % 4;  // heads row and row + 8 of the block

  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      mbar_init(full + 8 * s, C::kFp8 ? 128 : 128 + 4);
      mbar_init(empty + 8 * s, 8);
    }
    mbar_init(q_full, 1);
    mbar_init(p_full, 128);
    mbar_init(p_empty, 8);
    mbar_init_fence();
    tma_prefetch_map(&map_q);
  }
  __syncthreads();

  if (warpgroup == 0) {
    set_regs<C::kProducerRegs>();
    if constexpr (C::kFp8)
      produce_fp8<C>(args, shared);
    else
      produce_bf16<C>(args, shared);
  } else if (warpgroup == 1) {
    // ---- scores -----------------------------------------------------------------------------
    set_regs<C::kScoreRegs>();
    uint32_t qreg[C::kQReg > 0 ? C::kQReg * 4 : 1][4];
    auto load_q = [&](int item) {
      if (threadIdx.x == 128) {
        mbar_expect_tx(q_full, C::kBytesQ);
        for (int c = 0; c < C::kQBlocks; ++c)
          tma_load_2d(smem_q + c * 8192, &map_q, q_full, (C::kQReg + c) * 64, item * 64);
      }
      if constexpr (C::kQReg > 0) {
        const __nv_bfloat16* q = args.p.q + (int64_t{item} * 64 + row) * kDim + 2 * quad;
#pragma unroll
        for (int k = 0; k < C::kQReg * 4; ++k) {
          qreg[k][0] = *reinterpret_cast<const uint32_t*>(q + 16 * k);
          qreg[k][1] = *reinterpret_cast<const uint32_t*>(q + 16 * k + 8 * kDim);
          qreg[k][2] = *reinterpret_cast<const uint32_t*>(q + 16 * k + 8);
          qreg[k][3] = *reinterpret_cast<const uint32_t*>(q + 16 * k + 8 * kDim + 8);
        }
      }
    };
    if (blockIdx.x < args.num_items) load_q(blockIdx.x);
    int slot = 0;
    uint32_t phase = 0, p_phase = 0, q_phase = 0;
    int next_tiles =
        blockIdx.x < args.num_items ? tiles_of(args, blockIdx.x / args.head_blocks) : 0;
    for (int item = blockIdx.x; item < args.num_items; item += gridDim.x, q_phase ^= 1) {
      const int tiles = next_tiles;
      if (item + gridDim.x < args.num_items)
        next_tiles = tiles_of(args, (item + gridDim.x) / args.head_blocks);
      mbar_wait(q_full, q_phase);
      float m0 = -INFINITY, m1 = -INFINITY;
      for (int j = 0; j < tiles; ++j) {
        mbar_wait(full + 8 * slot, phase);
        fence_async();
        const uint64_t dk = desc_swizzle128(ring + slot * kTile * 128, 16, 1024);
        // Opaque, or the compiler keeps all descriptors of the queries in registers.
        uint64_t dq = desc_swizzle128(smem_q, 16, 1024);
        asm volatile("" : "+l"(dq));
        float s[32];
        wgmma_fence();
        if constexpr (C::kQReg > 0) {
#pragma unroll
          for (int k = 0; k < C::kQReg * 4; ++k)
            wgmma_bf16_rs<0>(s, qreg[k], dk + ((k / 4) * C::kBlockBytes + (k % 4) * 32) / 16,
                             k != 0);
        }
#pragma unroll
        for (int k = 0; k < C::kQBlocks * 4; ++k)
          wgmma_bf16_ss<0, 0>(s, dq + ((k / 4) * 8192 + (k % 4) * 32) / 16,
                              dk + ((C::kQReg + k / 4) * C::kBlockBytes + (k % 4) * 32) / 16,
                              C::kQReg > 0 || k != 0);
        wgmma_commit();
        if (C::kPvLater && j > 0) mbar_arrive(p_full);
        wgmma_wait<0>();
        keep(s);
        if (j + 1 == tiles) {
          named_barrier(1, 128);  // nobody reads these queries any more
          if (item + gridDim.x < args.num_items) load_q(item + gridDim.x);
        }
        const uint2 valid = *reinterpret_cast<const uint2*>(shared.holes[slot]);
        if ((valid.x & valid.y) != 0xFFFFFFFFu) {
#pragma unroll
          for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (!((i < 4 ? valid.x : valid.y) >> (8 * (i % 4) + 2 * quad + e) & 1))
                s[4 * i + e] = s[4 * i + 2 + e] = -INFINITY;
        }
        float x0 = fmaxf(s[0], s[1]), x1 = fmaxf(s[2], s[3]);
#pragma unroll
        for (int i = 1; i < 8; ++i) {
          x0 = fmaxf(x0, fmaxf(s[4 * i], s[4 * i + 1]));
          x1 = fmaxf(x1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
        }
        x0 = fmaxf(x0, __shfl_xor_sync(0xFFFFFFFFu, x0, 1));
        x1 = fmaxf(x1, __shfl_xor_sync(0xFFFFFFFFu, x1, 1));
        x0 = fmaxf(x0, __shfl_xor_sync(0xFFFFFFFFu, x0, 2)) * args.scale_log2;
        x1 = fmaxf(x1, __shfl_xor_sync(0xFFFFFFFFu, x1, 2)) * args.scale_log2;
        const bool up0 = x0 > m0 + kRescaleAbove, up1 = x1 > m1 + kRescaleAbove;
        const float a0 = up0 ? exp2_approx(m0 - x0) : 1.0f, a1 = up1 ? exp2_approx(m1 - x1) : 1.0f;
        m0 = up0 ? x0 : m0;
        m1 = up1 ? x1 : m1;
        // A row of holes so far: any finite reference gives p = 0.
        const float r0 = m0 == -INFINITY ? 0.0f : m0, r1 = m1 == -INFINITY ? 0.0f : m1;
        float sum0 = 0.0f, sum1 = 0.0f;
        uint32_t packed[16];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float p00 = exp2_approx(fmaf(s[4 * i], args.scale_log2, -r0));
          const float p01 = exp2_approx(fmaf(s[4 * i + 1], args.scale_log2, -r0));
          const float p10 = exp2_approx(fmaf(s[4 * i + 2], args.scale_log2, -r1));
          const float p11 = exp2_approx(fmaf(s[4 * i + 3], args.scale_log2, -r1));
          sum0 += p00 + p01;
          sum1 += p10 + p11;
          packed[2 * i] = pack_bf16(p00, p01);
          packed[2 * i + 1] = pack_bf16(p10, p11);
        }
        sum0 += __shfl_xor_sync(0xFFFFFFFFu, sum0, 1);
        sum1 += __shfl_xor_sync(0xFFFFFFFFu, sum1, 1);
        sum0 += __shfl_xor_sync(0xFFFFFFFFu, sum0, 2);
        sum1 += __shfl_xor_sync(0xFFFFFFFFu, sum1, 2);
        mbar_wait(p_empty, p_phase ^ 1);  // the product that read P has finished
        p_phase ^= 1;
        const int prow = warp * 16 + (lane / 8 % 2) * 8 + lane % 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int chunk = (2 * i + lane / 16) ^ (lane % 8);
          stmatrix_x4(smem_p + prow * 128 + chunk * 16, packed[4 * i], packed[4 * i + 1],
                      packed[4 * i + 2], packed[4 * i + 3]);
        }
        if (quad == 0) {
          rows.alpha[row] = a0, rows.alpha[row + 8] = a1;
          rows.sum[row] = sum0, rows.sum[row + 8] = sum1;
          rows.max[row] = m0, rows.max[row + 8] = m1;
        }
        fence_async();
        if (!C::kPvLater || j + 1 == tiles) mbar_arrive(p_full);
        if (++slot == C::kStages) slot = 0, phase ^= 1;
      }
    }
  } else {
    // ---- P times keys -------------------------------------------------------------------------
    set_regs<C::kOutputRegs>();
    const int half = warpgroup - 2;
    // Two products of 128 channels: one of 256 would need more registers in a single instruction
    // than the compiler grants a kernel of so many threads, whatever the warpgroup asks for later.
    float o[2][64];
    int slot = 0;
    uint32_t p_phase = 0;
    int next_tiles =
        blockIdx.x < args.num_items ? tiles_of(args, blockIdx.x / args.head_blocks) : 0;
    for (int item = blockIdx.x; item < args.num_items; item += gridDim.x) {
      const int tiles = next_tiles;
      if (item + gridDim.x < args.num_items)
        next_tiles = tiles_of(args, (item + gridDim.x) / args.head_blocks);
      float l0 = 0.0f, l1 = 0.0f, m0 = -INFINITY, m1 = -INFINITY;
      for (int j = 0; j < tiles; ++j) {
        mbar_wait(p_full, p_phase);
        p_phase ^= 1;
        const float a0 = rows.alpha[row], a1 = rows.alpha[row + 8];
        // Multiplying by 1 changes nothing, so it is left out when no row of the warp moved.
        if (j > 0 && __any_sync(0xFFFFFFFFu, a0 != 1.0f || a1 != 1.0f)) {
#pragma unroll
          for (int i = 0; i < 32; ++i) {
            float* v = &o[i / 16][4 * (i % 16)];
            v[0] *= a0;
            v[1] *= a0;
            v[2] *= a1;
            v[3] *= a1;
          }
        }
        const uint64_t dv = desc_swizzle128(ring + half * 4 * C::kBlockBytes + slot * kTile * 128,
                                            C::kBlockBytes, 1024);
        l0 = fmaf(l0, a0, rows.sum[row]);
        l1 = fmaf(l1, a1, rows.sum[row + 8]);
        m0 = rows.max[row];
        m1 = rows.max[row + 8];
        const uint64_t dp = desc_swizzle128(smem_p, 16, 1024);
        __syncwarp();
        fence_async();
        keep(o[0]);
        keep(o[1]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTile / 16; ++k)
#pragma unroll
          for (int n = 0; n < 2; ++n)
            wgmma_bf16_ss<0, 1>(o[n], dp + k * 32 / 16,
                                dv + (2 * n * C::kBlockBytes + k * 2048) / 16, (j | k) != 0);
        wgmma_commit();
        wgmma_wait<0>();
        keep(o[0]);
        keep(o[1]);
        if (lane == 0) {
          mbar_arrive(p_empty);
          mbar_arrive(empty + 8 * slot);
        }
        if (++slot == C::kStages) slot = 0;
      }
      const int head = (item % args.head_blocks) * 64 + row;
      // The sink, and 1 / Z.
      auto finish = [&](int h, int r, float m, float l) {
        const float sink = args.p.sink[h] * 1.44269504f;
        const float top = fmaxf(m, sink);
        const float weight = m == -INFINITY ? 0.0f : exp2f(m - top);
        const float z = fmaf(l, weight, sink == -INFINITY ? 0.0f : exp2f(sink - top));
        if (args.p.lse != nullptr && half == 0 && quad == 0)
          args.p.lse[int64_t{item} * 64 + r] = (top + log2f(z)) * 0.69314718f;
        return z > 0.0f ? weight / z : 0.0f;
      };
      const float z0 = finish(head, row, m0, l0), z1 = finish(head + 8, row + 8, m1, l1);
      // As in the dense product: lanes swap halves so that a quad writes one whole sector.
      const bool odd = quad & 1;
      __nv_bfloat16* out = args.p.out + (int64_t{item} * 64 + row) * kDim + half * 256 +
                           (odd ? 8 : 0) + 4 * (quad / 2);
#pragma unroll
      for (int i = 0; i < 32; i += 2) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float z = h == 0 ? z0 : z1;
          const float* pair = &o[i / 16][4 * (i % 16) + 2 * h];
          const uint32_t u0 = pack_bf16(pair[0] * z, pair[1] * z);
          const uint32_t u1 = pack_bf16(pair[4] * z, pair[5] * z);
          const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, odd ? u0 : u1, 1);
          const uint2 v = odd ? uint2{other, u1} : uint2{u0, other};
          *reinterpret_cast<uint2*>(out + h * 8 * kDim + 8 * i) = v;
        }
      }
    }
  }
}

template <class C>
cudaError_t launch(const SparseAttentionSm90& p, cudaStream_t stream) {
  CUtensorMap map_q;
  cudaError_t err = make_tensor_map_2d(&map_q, p.q, int64_t{p.T} * p.H, kDim, kDim, 2, 64, 64);
  if (err != cudaSuccess) return err;
  int device = 0, num_sms = 0;
  err = cudaGetDevice(&device);
  if (err != cudaSuccess) return err;
  err = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (err != cudaSuccess) return err;
  const auto kernel = sparse_attention_sm90_kernel<C>;
  err =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<C>));
  if (err != cudaSuccess) return err;
  Args args{};
  args.p = p;
  args.scale_log2 = p.scale * 1.44269504f;
  args.head_blocks = p.H / 64;
  args.num_items = p.T * args.head_blocks;
  args.window_tiles = p.window_keys / kTile;
  kernel<<<std::min(args.num_items, num_sms), C::kThreads, sizeof(Shared<C>), stream>>>(map_q,
                                                                                        args);
  return cudaGetLastError();
}

struct Variant {
  const char* name;
  KvLayout layout;
  cudaError_t (*run)(const SparseAttentionSm90&, cudaStream_t);
};
// The first of a layout is the one taken.
constexpr Variant kVariants[] = {
    {"bf16", KvLayout::kBf16, launch<AttentionConfig<5, 3, false>>},
    {"fp8", KvLayout::kFp8, launch<AttentionConfig<0, 2, true>>},
};

bool valid(const SparseAttentionSm90& p) {
  return p.T > 0 && p.H > 0 && p.H % 64 == 0 && p.window_keys > 0 && p.window_keys % kTile == 0 &&
         int64_t{p.T} * p.H < (int64_t{1} << 31) && p.q != nullptr && p.window.data != nullptr &&
         p.window_rows != nullptr && (p.picks == nullptr || p.entries.data != nullptr) &&
         (p.layout == KvLayout::kBf16 ||
          (p.window.page_bytes % 16 == 0 && p.entries.page_bytes % 16 == 0));
}

}  // namespace

int sparse_attention_sm90_num_variants() { return sizeof(kVariants) / sizeof(kVariants[0]); }
const char* sparse_attention_sm90_variant_name(int variant) { return kVariants[variant].name; }
bool sparse_attention_sm90_variant_fits(const SparseAttentionSm90& p, int variant) {
  return kVariants[variant].layout == p.layout;
}

cudaError_t sparse_attention_sm90_variant(const SparseAttentionSm90& p, int variant,
                                          cudaStream_t stream) {
  if (!valid(p) || !sparse_attention_sm90_variant_fits(p, variant)) return cudaErrorInvalidValue;
  return kVariants[variant].run(p, stream);
}

cudaError_t sparse_attention_sm90(const SparseAttentionSm90& p, cudaStream_t stream) {
  for (int v = 0; v < sparse_attention_sm90_num_variants(); ++v)
    if (sparse_attention_sm90_variant_fits(p, v))
      return sparse_attention_sm90_variant(p, v, stream);
  return cudaErrorInvalidValue;
}

}  // namespace fathom::sm90
