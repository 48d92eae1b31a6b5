// The kernel behind gemm_sm90.h. One producer warpgroup fills a ring of tiles through the bulk
// tensor copy engine, one or two consumer warpgroups multiply; CTAs walk over output tiles. Two
// CTAs side by side may form a cluster that shares its rows: each loads half of them and sends it
// to both.
#pragma once

#include "fathom/kernels/linear/gemm_sm90.h"
#include "fathom/kernels/sm90/ptx.h"
#include "fathom/kernels/sm90/wgmma.h"

namespace fathom::sm90 {

template <bool kFp8_, int kWarpgroups_, int kSlabs_, int BN_, int kStages_, bool kPair_,
          int kParts_, bool kOutFp32_>
struct GemmConfig {
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kWarpgroups = kWarpgroups_;  // consumers
  static constexpr int kSlabs = kSlabs_;            // of 64 rows, a consumer
  static constexpr int kParts = kParts_;  // FP8: 2 = one block is multiplied while one is scaled
  static constexpr int BM = 64 * kWarpgroups * kSlabs;
  static constexpr int BN = BN_;
  static constexpr int BK = kFp8 ? 128 : 64;  // 128 bytes
  static constexpr int kStages = kStages_;
  static constexpr bool kPair = kPair_;  // clusters of two
  static constexpr int kCluster = kPair ? 2 : 1;
  static constexpr bool kOutFp32 = kOutFp32_;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kBytesA = BM * 128;
  static constexpr int kBytesB = BN * 128;
  static constexpr int kSmemBytes = 1024 + kStages * (kBytesA + kBytesB);
};

struct GemmArgs {
  void* d;
  const float* a_scale;
  const float* w_scale;
  const int32_t* group_begin;
  int64_t ldd, a_scale_ld;
  int M, N, K, num_groups;
  int swizzle;  // row tiles walked before the next column tile
};

// Output tiles of this launch, in the order in which clusters take them.
template <class C>
struct TileWalk {
  static constexpr int kUnitRows = C::BM;
  static constexpr int kUnitCols = C::BN * C::kCluster;

  const int* first_unit;  // [num_groups + 1] in shared memory: row units before each group
  const int* begin;       // [num_groups + 1] rows before each group
  int num_groups, col_units, total, swizzle;

  struct Tile {
    int group, row, row_end, col;
  };
  __device__ Tile at(int index, int rank) const {
    // Units of a group times columns are consecutive indices.
    int lo = 0, hi = num_groups;
    while (hi - lo > 1) {
      const int mid = (lo + hi) / 2;
      if (first_unit[mid] * col_units <= index)
        lo = mid;
      else
        hi = mid;
    }
    const int units = first_unit[lo + 1] - first_unit[lo];
    const int local = index - first_unit[lo] * col_units;
    const int band = local / (swizzle * col_units);
    const int in_band = local - band * swizzle * col_units;
    const int height = min(swizzle, units - band * swizzle);
    const int unit = band * swizzle + in_band % height;
    const int col_unit = in_band / height;
    Tile t;
    t.group = lo;
    t.row = begin[lo] + unit * kUnitRows;
    t.row_end = begin[lo + 1];
    t.col = col_unit * kUnitCols + rank * C::BN;
    return t;
  }
};

// Writes one warp's 16 rows of an accumulator tile.
template <class C>
__device__ __forceinline__ void store_rows(const GemmArgs& args, const float (&acc)[C::BN / 2],
                                           int row0, int row_end, int col0) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  const int r0 = row0 + lane / 4, r1 = r0 + 8;
  if constexpr (C::kOutFp32) {
    float* d = static_cast<float*>(args.d);
#pragma unroll
    for (int i = 0; i < C::BN / 8; ++i) {
      const int col = col0 + 8 * i + 2 * quad;
      if (col >= args.N) continue;
      if (r0 < row_end)
        *reinterpret_cast<float2*>(d + r0 * args.ldd + col) = {acc[4 * i], acc[4 * i + 1]};
      if (r1 < row_end)
        *reinterpret_cast<float2*>(d + r1 * args.ldd + col) = {acc[4 * i + 2], acc[4 * i + 3]};
    }
  } else {
    // Lanes swap halves of two neighbouring 8-column blocks, so that each stores 8 bytes and a quad
    // one whole 32-byte sector: even lanes get block i, odd lanes block i + 1.
    __nv_bfloat16* d = static_cast<__nv_bfloat16*>(args.d);
    const bool odd = quad & 1;
#pragma unroll
    for (int i = 0; i < C::BN / 8; i += 2) {
      const int col = col0 + 8 * (i + (odd ? 1 : 0)) + 4 * (quad / 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t u0 = pack_bf16(acc[4 * i + 2 * half], acc[4 * i + 2 * half + 1]);
        const uint32_t u1 = pack_bf16(acc[4 * i + 4 + 2 * half], acc[4 * i + 5 + 2 * half]);
        const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, odd ? u0 : u1, 1);
        const uint2 v = odd ? uint2{other, u1} : uint2{u0, other};
        const int r = half == 0 ? r0 : r1;
        if (r < row_end && col < args.N) *reinterpret_cast<uint2*>(d + r * args.ldd + col) = v;
      }
    }
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ CUtensorMap map_a,
                     const __grid_constant__ CUtensorMap map_w, const GemmArgs args) {
  extern __shared__ uint8_t smem_raw[];
  __shared__ alignas(8) uint64_t bars[2 * C::kStages];
  __shared__ int first_unit[kMaxGemmGroups + 1];
  __shared__ int begin[kMaxGemmGroups + 1];

  const uint32_t smem = (smem_u32(smem_raw) + 1023) & ~1023u;
  const uint32_t full = smem_u32(bars), empty = full + 8 * C::kStages;
  const int warpgroup = threadIdx.x / 128;
  const uint32_t rank = C::kCluster > 1 ? cluster_rank() : 0;
  using Walk = TileWalk<C>;

  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      mbar_init(full + 8 * s, 1);
      mbar_init(empty + 8 * s, C::kWarpgroups * C::kCluster);
    }
    mbar_init_fence();
    tma_prefetch_map(&map_a);
    tma_prefetch_map(&map_w);
  }
  if (args.group_begin == nullptr) {
    if (threadIdx.x == 0) {
      begin[0] = 0;
      begin[1] = args.M;
      first_unit[0] = 0;
      first_unit[1] = (args.M + Walk::kUnitRows - 1) / Walk::kUnitRows;
    }
  } else {
    for (int g = threadIdx.x; g <= args.num_groups; g += C::kThreads)
      begin[g] = args.group_begin[g];
    __syncthreads();
    if (threadIdx.x < 32) {  // running sum of row units, 32 groups at a time
      int before = 0;
      for (int g0 = 0; g0 < args.num_groups; g0 += 32) {
        const int g = g0 + threadIdx.x;
        const int units = g < args.num_groups
                              ? (begin[g + 1] - begin[g] + Walk::kUnitRows - 1) / Walk::kUnitRows
                              : 0;
        int sum = units;
        for (int d = 1; d < 32; d *= 2) {
          const int up = __shfl_up_sync(0xFFFFFFFFu, sum, d);
          if (threadIdx.x >= d) sum += up;
        }
        if (g < args.num_groups) first_unit[g + 1] = before + sum;
        before += __shfl_sync(0xFFFFFFFFu, sum, 31);
      }
      if (threadIdx.x == 0) first_unit[0] = 0;
    }
  }
  if constexpr (C::kCluster > 1) cluster_sync();
  __syncthreads();

  Walk walk;
  walk.first_unit = first_unit;
  walk.begin = begin;
  walk.num_groups = args.num_groups;
  walk.col_units = (args.N + Walk::kUnitCols - 1) / Walk::kUnitCols;
  walk.total = first_unit[args.num_groups] * walk.col_units;
  walk.swizzle = args.swizzle;
  const int num_clusters = gridDim.x / C::kCluster, cluster = blockIdx.x / C::kCluster;
  const int num_k = (args.K + C::BK - 1) / C::BK;

  if (warpgroup == 0) {
    // ---- producer -------------------------------------------------------------------------------
    if constexpr (C::kWarpgroups == 2) regs_dec<40>();
    if (threadIdx.x == 0) {
      int stage = 0;
      uint32_t phase = 0;
      for (int index = cluster; index < walk.total; index += num_clusters) {
        const auto t = walk.at(index, rank);
        const int wrow = t.group * args.N + t.col;
        for (int kb = 0; kb < num_k; ++kb) {
          const uint32_t a = smem + stage * (C::kBytesA + C::kBytesB), b = a + C::kBytesA;
          const uint32_t bar = full + 8 * stage;
          mbar_wait(empty + 8 * stage, phase ^ 1);
          mbar_expect_tx(bar, C::kBytesA + C::kBytesB);
          if constexpr (C::kPair) {
            tma_load_2d_multicast(a + rank * (C::kBytesA / 2), &map_a, bar, kb * C::BK,
                                  t.row + rank * (C::BM / 2), 3);
          } else {
            tma_load_2d(a, &map_a, bar, kb * C::BK, t.row);
          }
          tma_load_2d(b, &map_w, bar, kb * C::BK, wrow);
          if (++stage == C::kStages) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    // ---- consumers ------------------------------------------------------------------------------
    if constexpr (C::kWarpgroups == 2) regs_inc<232>();
    const int wg = warpgroup - 1;
    const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
    const bool elected = threadIdx.x % 128 < C::kCluster;
    int stage = 0;
    uint32_t phase = 0;
    auto release = [&](int s) {
      if (elected) {
        if constexpr (C::kCluster > 1)
          mbar_arrive_cluster(empty + 8 * s, threadIdx.x % 128);
        else
          mbar_arrive(empty + 8 * s);
      }
    };
    auto wait_full = [&](int s, uint32_t ph) { mbar_wait(full + 8 * s, ph); };
    for (int index = cluster; index < walk.total; index += num_clusters) {
      const auto t = walk.at(index, rank);
      float acc[C::kSlabs][C::BN / 2];
      const int row0 = t.row + wg * C::kSlabs * 64 + warp * 16;
      if constexpr (!C::kFp8) {
        static_assert(C::kSlabs == 1);
        int before = 0;
        for (int kb = 0; kb < num_k; ++kb) {
          wait_full(stage, phase);
          const uint32_t a = smem + stage * (C::kBytesA + C::kBytesB) + wg * 64 * 128;
          const uint64_t da = desc_swizzle128(a, 16, 1024);
          const uint64_t db =
              desc_swizzle128(smem + stage * (C::kBytesA + C::kBytesB) + C::kBytesA, 16, 1024);
          keep(acc[0]);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma_bf16_ss<0, 0>(acc[0], da + 2 * k, db + 2 * k, (kb | k) != 0);
          wgmma_commit();
          keep(acc[0]);
          wgmma_wait<1>();
          if (kb > 0) release(before);
          before = stage;
          if (++stage == C::kStages) stage = 0, phase ^= 1;
        }
        wgmma_wait<0>();
        keep(acc[0]);
        release(before);
      } else {
        static_assert(C::BN <= 128 &&
                      128 % C::BN == 0);  // a tile lies inside one block of the weight
        const float* w_scale =
            args.w_scale + (int64_t{t.group} * args.N + min(t.col, args.N - 1)) / 128 * num_k;
        // Scales are loaded one block ahead: their latency is that of a whole product.
        float next_row[C::kSlabs][2], next_col;
        auto load_scales = [&](int kb) {
#pragma unroll
          for (int s = 0; s < C::kSlabs; ++s) {
            const int row = row0 + 64 * s + lane / 4;
            next_row[s][0] = __ldg(args.a_scale + kb * args.a_scale_ld + min(row, args.M - 1));
            next_row[s][1] = __ldg(args.a_scale + kb * args.a_scale_ld + min(row + 8, args.M - 1));
          }
          next_col = __ldg(w_scale + kb);
        };
        auto issue = [&](float(&d)[C::BN / 2], int slab) {
          const uint32_t tile = smem + stage * (C::kBytesA + C::kBytesB);
          const uint64_t da = desc_swizzle128(tile + (wg * C::kSlabs + slab) * 64 * 128, 16, 1024);
          const uint64_t db = desc_swizzle128(tile + C::kBytesA, 16, 1024);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k) wgmma_e4m3_ss(d, da + 2 * k, db + 2 * k, k != 0);
          wgmma_commit();
        };
        auto promote = [&](float(&sum)[C::BN / 2], const float(&d)[C::BN / 2], const float(&row)[2],
                           float col) {
          const float s0 = row[0] * col, s1 = row[1] * col;
#pragma unroll
          for (int i = 0; i < C::BN / 8; ++i) {
            sum[4 * i] = fmaf(d[4 * i], s0, sum[4 * i]);
            sum[4 * i + 1] = fmaf(d[4 * i + 1], s0, sum[4 * i + 1]);
            sum[4 * i + 2] = fmaf(d[4 * i + 2], s1, sum[4 * i + 2]);
            sum[4 * i + 3] = fmaf(d[4 * i + 3], s1, sum[4 * i + 3]);
          }
          // Finished before the next product overwrites d: otherwise the compiler moves these down,
          // copies d, and has to serialise the products.
          keep(sum);
        };
#pragma unroll
        for (int s = 0; s < C::kSlabs; ++s)
#pragma unroll
          for (int i = 0; i < C::BN / 2; ++i) acc[s][i] = 0;
        float row_scale[C::kSlabs][2], col_scale;
        auto take_scales = [&](int next_kb) {
#pragma unroll
          for (int s = 0; s < C::kSlabs; ++s)
            row_scale[s][0] = next_row[s][0], row_scale[s][1] = next_row[s][1];
          col_scale = next_col;
          load_scales(min(next_kb, num_k - 1));
        };
        auto next_stage = [&] {
          if (++stage == C::kStages) stage = 0, phase ^= 1;
        };
        load_scales(0);
        if constexpr (C::kParts == 1) {
          float part[C::BN / 2];
          for (int kb = 0; kb < num_k; ++kb) {
            take_scales(kb + 1);
            wait_full(stage, phase);
#pragma unroll
            for (int s = 0; s < C::kSlabs; ++s) {
              issue(part, s);
              wgmma_wait<0>();
              keep(part);
              if (s + 1 == C::kSlabs) release(stage);
              promote(acc[s], part, row_scale[s], col_scale);
            }
            next_stage();
          }
        } else {
          static_assert(C::kSlabs == 1);
          float part0[C::BN / 2], part1[C::BN / 2];
          int before = stage;
          auto start = [&](float(&part)[C::BN / 2]) {
            wait_full(stage, phase);
            issue(part, 0);
          };
          auto finish = [&](float(&part)[C::BN / 2], int kb) {
            keep(part);
            release(before);
            before = stage;
            promote(acc[0], part, row_scale[0], col_scale);
            take_scales(kb + 2);
          };
          take_scales(1);
          start(part0);
          int kb = 1;
          for (; kb + 1 < num_k; kb += 2) {
            next_stage();
            start(part1);
            wgmma_wait<1>();
            finish(part0, kb - 1);
            next_stage();
            start(part0);
            wgmma_wait<1>();
            finish(part1, kb);
          }
          if (kb < num_k) {
            next_stage();
            start(part1);
            wgmma_wait<1>();
            finish(part0, kb - 1);
            wgmma_wait<0>();
            finish(part1, kb);
          } else {
            wgmma_wait<0>();
            finish(part0, kb - 1);
          }
          next_stage();
        }
      }
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s)
        store_rows<C>(args, acc[s], row0 + 64 * s, t.row_end, t.col);
    }
  }
  // No CTA may leave while the other can still arrive on its barriers or write into its tiles.
  if constexpr (C::kCluster > 1) cluster_sync();
}

}  // namespace fathom::sm90
