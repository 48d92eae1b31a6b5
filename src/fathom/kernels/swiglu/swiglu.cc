#include "fathom/kernels/swiglu/swiglu.h"

#include <algorithm>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/kernels/swiglu/swiglu_cpu.h"
#include "fathom/kernels/swiglu/swiglu_cuda.h"

namespace fathom {
namespace {

constexpr int64_t kElementGrain = 16384;

/// Tokens per range, so that a range moves about kElementGrain numbers.
int64_t token_grain(int64_t K, int64_t D) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, K * D));
}

}  // namespace

void swiglu_fwd(const ExecContext& ctx, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, float* a) {
  FATHOM_ASSERT(limit >= 0, "limit = ", limit);
  FATHOM_DEVICE_DISPATCH(ctx, swiglu_fwd, num_rows, I, limit, g, u, a);
  ctx.threads->parallel_for(num_rows * I, kElementGrain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, swiglu_fwd_elements, limit, g, u, a, begin, end);
  });
}

void swiglu_bwd(const ExecContext& ctx, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, const float* da, float* dg, float* du) {
  FATHOM_ASSERT(limit >= 0, "limit = ", limit);
  FATHOM_DEVICE_DISPATCH(ctx, swiglu_bwd, num_rows, I, limit, g, u, da, dg, du);
  ctx.threads->parallel_for(num_rows * I, kElementGrain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, swiglu_bwd_elements, limit, g, u, da, dg, du, begin, end);
  });
}

void moe_dispatch(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* x,
                  const int32_t* slot_row, float* rows) {
  FATHOM_DEVICE_DISPATCH(ctx, moe_dispatch, T, K, D, x, slot_row, rows);
  ctx.threads->parallel_for(T, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * K; i < end * K; ++i) {
      std::memcpy(rows + slot_row[i] * D, x + i / K * D, static_cast<size_t>(D) * sizeof(float));
    }
  });
}

void moe_combine_fwd(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* shared,
                     float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, moe_combine_fwd, T, K, D, rows, slot_row, weights, shared, out);
  const MoeCombine c{K, D, rows, slot_row, weights};
  ctx.threads->parallel_for(T, token_grain(K, D), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, moe_combine_fwd_tokens, c, shared, out, begin, end);
  });
}

void moe_combine_bwd(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* dout, float* drows,
                     float* dweights) {
  FATHOM_DEVICE_DISPATCH(ctx, moe_combine_bwd, T, K, D, rows, slot_row, weights, dout, drows,
                         dweights);
  const MoeCombine c{K, D, rows, slot_row, weights};
  ctx.threads->parallel_for(T, token_grain(K, D), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, moe_combine_bwd_tokens, c, dout, drows, dweights, begin, end);
  });
}

}  // namespace fathom
