#include "fathom/kernels/swiglu/swiglu.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/kernels/swiglu/swiglu_cpu.h"

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
  ctx.threads->parallel_for(num_rows * I, kElementGrain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, swiglu_fwd_elements, limit, g, u, a, begin, end);
  });
}

void swiglu_bwd(const ExecContext& ctx, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, const float* da, float* dg, float* du) {
  FATHOM_ASSERT(limit >= 0, "limit = ", limit);
  ctx.threads->parallel_for(num_rows * I, kElementGrain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, swiglu_bwd_elements, limit, g, u, da, dg, du, begin, end);
  });
}

void moe_combine_fwd(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* shared,
                     float* out) {
  const MoeCombine c{K, D, rows, slot_row, weights};
  ctx.threads->parallel_for(T, token_grain(K, D), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, moe_combine_fwd_tokens, c, shared, out, begin, end);
  });
}

void moe_combine_bwd(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* dout, float* drows,
                     float* dweights) {
  const MoeCombine c{K, D, rows, slot_row, weights};
  ctx.threads->parallel_for(T, token_grain(K, D), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, moe_combine_bwd_tokens, c, dout, drows, dweights, begin, end);
  });
}

}  // namespace fathom
