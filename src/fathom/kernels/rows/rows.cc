#include "fathom/kernels/rows/rows.h"

#include <algorithm>
#include <cstring>

#include "fathom/kernels/rows/rows_cuda.h"

namespace fathom {
namespace {

/// Rows per range, so that a range moves about 16 K numbers.
int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

}  // namespace

void gather_rows(const ExecContext& ctx, const float* x, const int64_t* rows, int64_t R,
                 int64_t width, float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, gather_rows, x, rows, R, width, out);
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  for (int64_t r = 0; r < R; ++r) std::memcpy(out + r * width, x + rows[r] * width, row_bytes);
}

void add_rows(const ExecContext& ctx, const float* in, const int64_t* rows, int64_t R,
              int64_t width, float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, add_rows, in, rows, R, width, out);
  for (int64_t r = 0; r < R; ++r) {
    float* to = out + rows[r] * width;
    for (int64_t i = 0; i < width; ++i) to[i] += in[r * width + i];
  }
}

void add_to_streams(const ExecContext& ctx, int64_t T, int64_t M, int64_t D, const float* e,
                    float* streams) {
  FATHOM_DEVICE_DISPATCH(ctx, add_to_streams, T, M, D, e, streams);
  ctx.threads->parallel_for(T, row_grain(M * D), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * M; row < end * M; ++row) {
      for (int64_t d = 0; d < D; ++d) streams[row * D + d] += e[row / M * D + d];
    }
  });
}

void sum_streams(const ExecContext& ctx, int64_t T, int64_t M, int64_t D, const float* d,
                 float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, sum_streams, T, M, D, d, out);
  ctx.threads->parallel_for(T, row_grain(M * D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = out + t * D;
      std::fill_n(sum, D, 0.0f);
      for (int64_t j = 0; j < M; ++j) {
        for (int64_t i = 0; i < D; ++i) sum[i] += d[(t * M + j) * D + i];
      }
    }
  });
}

void scale_elements(const ExecContext& ctx, int64_t n, float factor, float* x) {
  FATHOM_DEVICE_DISPATCH(ctx, scale_elements, n, factor, x);
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace fathom
