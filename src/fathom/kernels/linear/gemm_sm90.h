// Products with a weight on Hopper: d[m, n] = sum_k a[m, k] * w[n, k], one matrix or one per group
// of rows, in BF16 or in FP8 blocks with scales.
//
// Bits: every output element is one chain over K upwards, in instructions of 16 (BF16) or 32 (FP8)
// along K on one fp32 accumulator. FP8: one such chain from 0 per block of 128, its sum times both
// scales added to the fp32 result by one fma, blocks upwards. Tiles, clusters and the number of
// rows change nothing: row t has the same bits alone and among thousands, dense and grouped, in
// every variant (tested).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::sm90 {

struct GemmSm90 {
  const void* a;          // [M, K] bf16, or e4m3 when a_scale is set; on 16 bytes
  const void* w;          // [num_groups * N, K] likewise
  void* d;                // [M, N] bf16, or fp32 when out_fp32
  int64_t M, N, K;        // K: a multiple of 8 (bf16) or 128 (FP8); N: of 8 (bf16) or 128 (FP8)
  int64_t lda, ldw, ldd;  // row distances in elements; lda and ldw * element size multiples of 16
  bool out_fp32 = false;
  const float* a_scale = nullptr;  // [K / 128, a_scale_ld]: scale of (block of K, row)
  int64_t a_scale_ld = 0;          // at least M
  const float* w_scale = nullptr;  // [num_groups * N / 128, K / 128]
  // Grouped: rows group_begin[g] .. group_begin[g + 1] - 1 are multiplied with matrix g. On the
  // device, int32 [num_groups + 1], ascending from 0 to at most M. Null: one group of M rows.
  const int32_t* group_begin = nullptr;
  int num_groups = 1;  // at most kMaxGemmGroups
};
constexpr int kMaxGemmGroups = 512;

/// Number of tile shapes, and their names, for tests and benches.
int gemm_sm90_num_variants();
const char* gemm_sm90_variant_name(int variant);
/// Whether the variant can compute p (operand type).
bool gemm_sm90_variant_fits(const GemmSm90& p, int variant);
/// The variant that gemm_sm90 takes. Depends on shapes alone.
int gemm_sm90_choose(const GemmSm90& p);

/// Enqueues the product. Allocates nothing, does not synchronise; may be captured into a graph.
/// Errors: cudaErrorInvalidValue for shapes outside the bounds above, or the launch's error.
cudaError_t gemm_sm90(const GemmSm90& p, cudaStream_t stream);
cudaError_t gemm_sm90_variant(const GemmSm90& p, int variant, cudaStream_t stream);

}  // namespace fathom::sm90
