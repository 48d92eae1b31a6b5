#include "fathom/kernels/sparse_attention/sparse_attention_sm90.h"

#include <algorithm>

#include "fathom/kernels/sm90/ptx.h"
#include "fathom/kernels/sm90/tensor_map.h"
#include "fathom/kernels/sm90/wgmma.h"

namespace fathom::sm90 {
namespace {

// One CTA computes one item at a time: a query and 64 of its heads. Roles of its warpgroups:
//   producer: gathers keys into a ring of tiles of 32 keys (and decodes FP8);
//   scores (one or two): multiply queries and keys, and turn scores into P. Two take tiles in turn, so
//     that one multiplies while the other takes exponentials; the running maximum goes from one to the
//     other. With one, the tensor cores wait for its exponentials (README: 2,200 cycles a tile);
//   output (two): multiply P with the left and right 256 channels of the keys, and hold that result.
// Barriers carry tiles from one to the next.
constexpr int kDim = 512;
constexpr int kTile = 32;
constexpr float kRescaleAbove = 8.0f;  // log2: p stays below 2^8, exact enough in BF16 and fp32

template <int kScoreGroups_, int kQReg_, int kStages_, bool kFp8_>
struct AttentionConfig {
  static constexpr int kScoreGroups = kScoreGroups_;
  static constexpr int kQReg = kQReg_;  // how many blocks of 64 query channels are in registers
  static constexpr int kStages = kStages_;
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kThreads = 128 * (kScoreGroups + 3);
  static constexpr int kQBlocks = 8 - kQReg;
  static constexpr int kRows = kStages * kTile;
  static constexpr int kBlockBytes = kRows * 128;  // 64 channels of all keys in the ring
  static constexpr int kBytesQ = kQBlocks * 8192;
  static constexpr int kBytesK = 8 * kBlockBytes;
  static constexpr int kBytesP = 2 * 64 * kTile * 2;
  // Registers a thread of each role. What the roles take together must fit into what the kernel gets
  // at its start, or the warpgroups that ask for more wait for ever.
  static constexpr int kEntryRegs = 65536 / kThreads / 8 * 8;
  static constexpr int kPool = kEntryRegs * (kScoreGroups + 3);
  static constexpr int kOutputRegs = kScoreGroups == 2 ? 160 : 168;
  static constexpr int kProducerRegs = kFp8 ? 80 : kScoreGroups == 2 ? 32 : 40;
  static constexpr int kScoreRegs = (kPool - 2 * kOutputRegs - kProducerRegs) / kScoreGroups / 8 * 8;
  static_assert(2 * kOutputRegs + kProducerRegs + kScoreGroups * kScoreRegs <= kPool);
};

// What the score groups tell the output groups about a tile, beside P; one a buffer of P.
struct TileRows {
  float alpha[64];  // what earlier results are multiplied with
  float sum[64];    // sum of p
  float max[64];    // reference m
};

// All of shared memory: with none declared outside it starts on 1,024 bytes, as swizzling needs.
template <class C>
struct Shared {
  uint8_t q[C::kBytesQ], keys[C::kBytesK], p[C::kBytesP];
  uint64_t full[C::kStages], empty[C::kStages], q_full, q_read, p_full[2], p_empty[2], max_full[8];
  TileRows tile_rows[2];
  float handed_max[2][64];  // by the score group that hands it on
  uint8_t holes[C::kStages * 4];
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

// Row of the list at place `pos` (0..7 in this warp's part of tile j), -1: hole.
__device__ __forceinline__ int list_row(const Args& a, int t, int picks, int j, int pos) {
  if (j < a.window_tiles) return a.p.window_rows[int64_t{t} * a.p.window_keys + j * kTile + pos];
  const int e = (j - a.window_tiles) * kTile + pos;
  return e < picks ? a.p.picks[int64_t{t} * a.p.picks_stride + e] : -1;
}

// Two e4m3 codes (bytes 1 and 3 of `codes`) times 2^120 * scale as bf16 pair: the code's bits moved
// into a bf16 are its value times 2^-120; both products are exact.
__device__ __forceinline__ uint32_t decode_pair(uint32_t codes, __nv_bfloat162 scale) {
  const uint32_t bits = (codes & 0x80008000u) | ((codes & 0x7F007F00u) >> 4);
  const __nv_bfloat162 two120 = __halves2bfloat162(__ushort_as_bfloat16(0x7B80), __ushort_as_bfloat16(0x7B80));
  __nv_bfloat162 v = *reinterpret_cast<const __nv_bfloat162*>(&bits);
  v = __hmul2(__hmul2(v, two120), scale);
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <class C>
__device__ __forceinline__ void produce_bf16(const Args& a, uint32_t ring, uint32_t full,
                                             uint32_t empty, uint8_t* holes) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int slot = 0;
  uint32_t phase = 0;
  for (int item = blockIdx.x; item < a.num_items; item += gridDim.x) {
    const int t = item / a.head_blocks;
    const int picks = picks_of(a, t), tiles = tiles_of(a, t);
    int next = lane < 8 ? list_row(a, t, picks, 0, warp * 8 + lane) : -1;
    for (int j = 0; j < tiles; ++j) {
      const int mine = next;
      if (j + 1 < tiles && lane < 8) next = list_row(a, t, picks, j + 1, warp * 8 + lane);
      const char* base =
          static_cast<const char*>(j < a.window_tiles ? a.p.window.data : a.p.entries.data) + lane * 16;
      mbar_wait(empty + 8 * slot, phase ^ 1);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int row = __shfl_sync(0xFFFFFFFFu, mine, r);
        const char* src = base + int64_t{max(row, 0)} * (kDim * 2);
        const uint32_t dst = ring + (lane / 8) * C::kBlockBytes +
                             (slot * kTile + warp * 8 + r) * 128 + ((lane % 8) ^ r) * 16;
        cp_async_16(dst, src, row >= 0);
        cp_async_16(dst + 4 * C::kBlockBytes, src + 512, row >= 0);
      }
      const uint32_t valid = __ballot_sync(0xFFFFFFFFu, mine >= 0);
      if (lane == 0) holes[slot * 4 + warp] = static_cast<uint8_t>(valid);
      mbar_arrive_cp_async(full + 8 * slot);
      if (lane == 0) mbar_arrive(full + 8 * slot);
      if (++slot == C::kStages) slot = 0, phase ^= 1;
    }
  }
}

template <class C>
__device__ __forceinline__ void produce_fp8(const Args& a, uint32_t ring, uint32_t full,
                                            uint32_t empty, uint8_t* holes) {
  // Four threads a key. Each loads every fourth 16-byte piece, one tile ahead.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int key = lane / 4, sub = lane % 4;
  struct Raw {
    uint4 codes[7], rotary[2];
    uint2 scales;
    uint32_t valid;
  };
  auto load = [&](Raw& raw, int t, int picks, int j) {
    const int mine = lane < 8 ? list_row(a, t, picks, j, warp * 8 + lane) : -1;
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
    if (row >= 0) raw.scales = *reinterpret_cast<const uint2*>(page + page_entries * 576 + in_page * 8);
#pragma unroll
    for (int i = 0; i < 7; ++i)
      raw.codes[i] = row >= 0 ? *reinterpret_cast<const uint4*>(data + (4 * i + sub) * 16) : zero;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      raw.rotary[i] = row >= 0 ? *reinterpret_cast<const uint4*>(data + 448 + (4 * i + sub) * 16) : zero;
  };
  int slot = 0;
  uint32_t phase = 0;
  for (int item = blockIdx.x; item < a.num_items; item += gridDim.x) {
    const int t = item / a.head_blocks;
    const int picks = picks_of(a, t), tiles = tiles_of(a, t);
    Raw raw;
    load(raw, t, picks, 0);
    for (int j = 0; j < tiles; ++j) {
      mbar_wait(empty + 8 * slot, phase ^ 1);
      const uint32_t dst = ring + (slot * kTile + warp * 8 + key) * 128;
#pragma unroll
      for (int i = 0; i < 7; ++i) {  // block i of 64 channels, channels 16 sub .. 16 sub + 15
        const uint32_t e = __byte_perm(raw.scales.x, raw.scales.y, i) & 0xFF;
        const uint16_t bits = static_cast<uint16_t>(e == 0 ? 0x40 : e << 7);
        const __nv_bfloat162 scale =
            __halves2bfloat162(__ushort_as_bfloat16(bits), __ushort_as_bfloat16(bits));
        const uint32_t words[4] = {raw.codes[i].x, raw.codes[i].y, raw.codes[i].z, raw.codes[i].w};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t v[4];
#pragma unroll
          for (int w = 0; w < 2; ++w) {
            v[2 * w] = decode_pair(__byte_perm(words[2 * half + w], 0, 0x1404), scale);
            v[2 * w + 1] = decode_pair(__byte_perm(words[2 * half + w], 0, 0x3424), scale);
          }
          asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                           dst + i * C::kBlockBytes + ((2 * sub + half) ^ key) * 16),
                       "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                       : "memory");
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                         dst + 7 * C::kBlockBytes + ((4 * i + sub) ^ key) * 16),
                     "r"(raw.rotary[i].x), "r"(raw.rotary[i].y), "r"(raw.rotary[i].z),
                     "r"(raw.rotary[i].w)
                     : "memory");
      if (lane == 0) holes[slot * 4 + warp] = static_cast<uint8_t>(raw.valid);
      fence_async();
      mbar_arrive(full + 8 * slot);
      if (++slot == C::kStages) slot = 0, phase ^= 1;
      if (j + 1 < tiles) load(raw, t, picks, j + 1);
    }
  }
}

template <class C, int kRegs>
__device__ __forceinline__ void set_regs() {
  if constexpr (kRegs > C::kEntryRegs) regs_inc<kRegs>();
  else if constexpr (kRegs < C::kEntryRegs) regs_dec<kRegs>();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    sparse_attention_sm90_kernel(const __grid_constant__ CUtensorMap map_q,
                                 const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t smem_raw[];
  auto& shared = *reinterpret_cast<Shared<C>*>(smem_raw);
  uint8_t* const holes = shared.holes;
  auto& tile_rows = shared.tile_rows;
  auto& handed_max = shared.handed_max;
  const uint32_t smem_q = smem_u32(shared.q), ring = smem_u32(shared.keys), smem_p = smem_u32(shared.p);
  const uint32_t full = smem_u32(shared.full), empty = smem_u32(shared.empty);
  const uint32_t q_full = smem_u32(&shared.q_full), q_read = smem_u32(&shared.q_read);
  const uint32_t p_full = smem_u32(shared.p_full), p_empty = smem_u32(shared.p_empty);
  const uint32_t max_full = smem_u32(shared.max_full);
  const int warpgroup = threadIdx.x / 128;
  const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      mbar_init(full + 8 * s, C::kFp8 ? 128 : 128 + 4);
      mbar_init(empty + 8 * s, 8);
    }
    mbar_init(q_full, 1);
    mbar_init(q_read, 4 * C::kScoreGroups);
    for (int b = 0; b < 2; ++b) {
      mbar_init(p_full + 8 * b, 128);
      mbar_init(p_empty + 8 * b, 8);
    }
    for (int w = 0; w < 8; ++w) mbar_init(max_full + 8 * w, 1);
    mbar_init_fence();
    tma_prefetch_map(&map_q);
  }
  __syncthreads();

  if (warpgroup == 0) {
    set_regs<C, C::kProducerRegs>();
    if constexpr (C::kFp8) produce_fp8<C>(args, ring, full, empty, holes);
    else produce_bf16<C>(args, ring, full, empty, holes);
  } else if (warpgroup <= C::kScoreGroups) {
    // ---- scores -----------------------------------------------------------------------------
    set_regs<C, C::kScoreRegs>();
    const int group = warpgroup - 1;
    const int row = warp * 16 + lane / 4, quad = lane % 4;  // heads row and row + 8 of the block
    uint32_t qreg[C::kQReg > 0 ? C::kQReg * 4 : 1][4];
    auto load_q = [&](int item) {  // one thread
      mbar_expect_tx(q_full, C::kBytesQ);
      for (int c = 0; c < C::kQBlocks; ++c)
        tma_load_2d(smem_q + c * 8192, &map_q, q_full, (C::kQReg + c) * 64, item * 64);
    };
    if (threadIdx.x == 128 && blockIdx.x < args.num_items) load_q(blockIdx.x);
    const int prow = warp * 16 + (lane / 8 % 2) * 8 + lane % 8;
    uint32_t p_phase = 0, max_phase = 0;
    int parity = 0, first = 0;  // first: number of tiles of earlier items
    for (int item = blockIdx.x; item < args.num_items; item += gridDim.x, parity ^= 1) {
      const int tiles = tiles_of(args, item / args.head_blocks);
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
      mbar_wait(q_full, parity);
      float m0 = -INFINITY, m1 = -INFINITY;
      for (int j = group; j < tiles; j += C::kScoreGroups) {
        const int slot = (first + j) % C::kStages;
        mbar_wait(full + 8 * slot, (first + j) / C::kStages & 1);
        fence_async();
        const uint64_t dk = desc_swizzle128(ring + slot * kTile * 128, 16, 1024);
        // Opaque, or the compiler keeps all 32 descriptors of the queries in registers.
        uint64_t dq = desc_swizzle128(smem_q, 16, 1024);
        asm volatile("" : "+l"(dq));
        float s[16];
        wgmma_fence();
        if constexpr (C::kQReg > 0) {
#pragma unroll
          for (int k = 0; k < C::kQReg * 4; ++k)
            wgmma_bf16_rs<0>(s, qreg[k], dk + ((k / 4) * C::kBlockBytes + (k % 4) * 32) / 16, k != 0);
        }
#pragma unroll
        for (int k = 0; k < C::kQBlocks * 4; ++k)
          wgmma_bf16_ss<0, 0>(s, dq + ((k / 4) * 8192 + (k % 4) * 32) / 16,
                              dk + ((C::kQReg + k / 4) * C::kBlockBytes + (k % 4) * 32) / 16,
                              C::kQReg > 0 || k != 0);
        wgmma_commit();
        wgmma_wait<0>();
        keep(s);
        if (j + C::kScoreGroups >= tiles) {  // this group reads these queries no more
          __syncwarp();
          if (lane == 0) mbar_arrive(q_read);
          if (j + 1 == tiles && threadIdx.x % 128 == 0 && item + gridDim.x < args.num_items) {
            if constexpr (C::kScoreGroups == 2)
              if (tiles == 1) for (int w = 0; w < 4; ++w) mbar_arrive(q_read);  // for the idle group
            mbar_wait(q_read, parity);
            load_q(item + gridDim.x);
          }
        }
        const uint32_t valid = *reinterpret_cast<const uint32_t*>(holes + slot * 4) >> (2 * quad);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool is_key = (valid >> (8 * i + e)) & 1;
            s[4 * i + e] = is_key ? s[4 * i + e] : -INFINITY;
            s[4 * i + 2 + e] = is_key ? s[4 * i + 2 + e] : -INFINITY;
          }
        float x0 = fmaxf(s[0], s[1]), x1 = fmaxf(s[2], s[3]);
#pragma unroll
        for (int i = 1; i < 4; ++i) {
          x0 = fmaxf(x0, fmaxf(s[4 * i], s[4 * i + 1]));
          x1 = fmaxf(x1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
        }
        x0 = fmaxf(x0, __shfl_xor_sync(0xFFFFFFFFu, x0, 1));
        x1 = fmaxf(x1, __shfl_xor_sync(0xFFFFFFFFu, x1, 1));
        x0 = fmaxf(x0, __shfl_xor_sync(0xFFFFFFFFu, x0, 2)) * args.scale_log2;
        x1 = fmaxf(x1, __shfl_xor_sync(0xFFFFFFFFu, x1, 2)) * args.scale_log2;
        if constexpr (C::kScoreGroups == 2) {
          if (j > 0) {  // the maximum after the other group's tile
            mbar_wait(max_full + 8 * ((1 - group) * 4 + warp), max_phase);
            max_phase ^= 1;
            m0 = handed_max[1 - group][row];
            m1 = handed_max[1 - group][row + 8];
          }
        }
        const bool up0 = x0 > m0 + kRescaleAbove, up1 = x1 > m1 + kRescaleAbove;
        const float a0 = up0 ? exp2_approx(m0 - x0) : 1.0f, a1 = up1 ? exp2_approx(m1 - x1) : 1.0f;
        m0 = up0 ? x0 : m0;
        m1 = up1 ? x1 : m1;
        if constexpr (C::kScoreGroups == 2) {
          if (j + 1 < tiles) {
            if (quad == 0) {
              handed_max[group][row] = m0;
              handed_max[group][row + 8] = m1;
            }
            __syncwarp();
            if (lane == 0) mbar_arrive(max_full + 8 * (group * 4 + warp));
          }
        }
        // A row of holes so far: any finite reference gives p = 0.
        const float r0 = m0 == -INFINITY ? 0.0f : m0, r1 = m1 == -INFINITY ? 0.0f : m1;
        float sum0 = 0.0f, sum1 = 0.0f;
        uint32_t packed[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
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
        const int buffer = j & 1;
        const uint32_t phase = C::kScoreGroups == 2 ? p_phase : p_phase >> buffer & 1;
        mbar_wait(p_empty + 8 * buffer, phase ^ 1);  // the product that read this buffer has finished
        p_phase ^= C::kScoreGroups == 2 ? 1 : 1 << buffer;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int chunk = (2 * i + lane / 16) ^ ((prow / 2) % 4);
          stmatrix_x4(smem_p + buffer * 4096 + prow * 64 + chunk * 16, packed[4 * i],
                      packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]);
        }
        if (quad == 0) {
          TileRows& rows = tile_rows[buffer];
          rows.alpha[row] = a0, rows.alpha[row + 8] = a1;
          rows.sum[row] = sum0, rows.sum[row + 8] = sum1;
          rows.max[row] = m0, rows.max[row + 8] = m1;
        }
        fence_async();
        mbar_arrive(p_full + 8 * buffer);
      }
      first += tiles;
    }
  } else {
    // ---- P times keys -------------------------------------------------------------------------
    set_regs<C, C::kOutputRegs>();
    const int half = warpgroup - 1 - C::kScoreGroups;
    const int row = warp * 16 + lane / 4, quad = lane % 4;
    // Two products of 128 channels: one of 256 would need more registers in a single instruction than
    // the compiler grants a kernel of so many threads, whatever the warpgroup asks for later.
    float o[2][64];
    int slot = 0;
    uint32_t p_phase = 0;  // bit b: buffer b
    for (int item = blockIdx.x; item < args.num_items; item += gridDim.x) {
      const int tiles = tiles_of(args, item / args.head_blocks);
      float l0 = 0.0f, l1 = 0.0f, m0 = -INFINITY, m1 = -INFINITY;
      for (int j = 0; j < tiles; ++j) {
        const int buffer = j & 1;
        mbar_wait(p_full + 8 * buffer, p_phase >> buffer & 1);
        p_phase ^= 1 << buffer;
        const TileRows& rows = tile_rows[buffer];
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
        fence_async();
        const uint64_t dp = desc_swizzle64(smem_p + buffer * 4096, 16, 512);
        const uint64_t dv = desc_swizzle128(
            ring + half * 4 * C::kBlockBytes + slot * kTile * 128, C::kBlockBytes, 1024);
        keep(o[0]);
        keep(o[1]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
          for (int n = 0; n < 2; ++n)
            wgmma_bf16_ss<0, 1>(o[n], dp + k * 32 / 16,
                                dv + (2 * n * C::kBlockBytes + k * 2048) / 16, (j | k) != 0);
        wgmma_commit();
        l0 = fmaf(l0, a0, rows.sum[row]);
        l1 = fmaf(l1, a1, rows.sum[row + 8]);
        m0 = rows.max[row];
        m1 = rows.max[row + 8];
        __syncwarp();
        wgmma_wait<0>();
        keep(o[0]);
        keep(o[1]);
        if (lane == 0) {
          mbar_arrive(empty + 8 * slot);
          mbar_arrive(p_empty + 8 * buffer);
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
  err = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<C>));
  if (err != cudaSuccess) return err;
  Args args{};
  args.p = p;
  args.scale_log2 = p.scale * 1.44269504f;
  args.head_blocks = p.H / 64;
  args.num_items = p.T * args.head_blocks;
  args.window_tiles = p.window_keys / kTile;
  kernel<<<std::min(args.num_items, num_sms), C::kThreads, sizeof(Shared<C>), stream>>>(map_q, args);
  return cudaGetLastError();
}

struct Variant {
  const char* name;
  KvLayout layout;
  cudaError_t (*run)(const SparseAttentionSm90&, cudaStream_t);
};
// The first of a layout is the one taken.
constexpr Variant kVariants[] = {
    {"bf16, 2 score groups, 4 tiles", KvLayout::kBf16, launch<AttentionConfig<2, 0, 4, false>>},
    {"bf16, 2 score groups, 1/8 q in regs, 5 tiles", KvLayout::kBf16, launch<AttentionConfig<2, 1, 5, false>>},
    {"bf16, 1 score group, 1/2 q in regs, 5 tiles", KvLayout::kBf16, launch<AttentionConfig<1, 4, 5, false>>},
    {"fp8, 1 score group, 4 tiles", KvLayout::kFp8, launch<AttentionConfig<1, 0, 4, true>>},
    {"fp8, 1 score group, 1/4 q in regs, 5 tiles", KvLayout::kFp8, launch<AttentionConfig<1, 2, 5, true>>},
};

bool valid(const SparseAttentionSm90& p) {
  return p.T > 0 && p.H > 0 && p.H % 64 == 0 && p.window_keys >= 64 && p.window_keys % kTile == 0 &&
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
    if (sparse_attention_sm90_variant_fits(p, v)) return sparse_attention_sm90_variant(p, v, stream);
  return cudaErrorInvalidValue;
}

}  // namespace fathom::sm90
