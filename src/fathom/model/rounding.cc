#include "fathom/model/rounding.h"

#include "fathom/kernels/quant/entry_format.h"  // block sizes
#include "fathom/kernels/quant/quant.h"

namespace fathom {

Tensor Rounding::activation(const ExecContext& ctx, Tensor x) const {
  if (precision_ != Precision::kFp32) round_bf16(ctx, x.f32(), x.numel(), x.f32());
  return x;
}

Tensor Rounding::latent(const ExecContext& ctx, Tensor rows, int64_t rope_dim) const {
  if (precision_ != Precision::kParityFp8) return rows;
  const int64_t width = rows.shape().back();
  simulate_fp8_rows(ctx, {.x = rows.f32(),
                          .x_stride = width,
                          .out = rows.f32(),
                          .out_stride = width,
                          .num_rows = rows.numel() / width,
                          .n = width - rope_dim,
                          .block = kLatentFp8Block});
  return rows;
}

Tensor Rounding::indexer(const ExecContext& ctx, Tensor rows, int64_t width) const {
  if (precision_ != Precision::kParityFp8) return rows;
  const int64_t num_rows = rows.numel() / width;
  hadamard_rows_bf16(ctx, num_rows, width, rows.f32());
  simulate_fp8_rows(ctx, {.x = rows.f32(),
                          .x_stride = width,
                          .out = rows.f32(),
                          .out_stride = width,
                          .num_rows = num_rows,
                          .n = width,
                          .block = kIndexerFp8Block});
  return rows;
}

}  // namespace fathom
