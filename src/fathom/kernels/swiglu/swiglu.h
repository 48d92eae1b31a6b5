// Clamped SwiGLU of experts, and the combination of expert rows at their token.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

/// û = clamp(u, ±limit), ĝ = min(g, limit) (limit 0: no clamp); a = (ĝ·σ(ĝ))·û. [R, I] each.
void swiglu_fwd(const ExecContext& ctx, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, float* a);
/// du = da·silu(ĝ)·[|u| <= limit]; dg = da·û·σ(ĝ)(1 + ĝ(1 − σ(ĝ)))·[g <= limit]. Written.
void swiglu_bwd(const ExecContext& ctx, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, const float* da, float* dg, float* du);

/// rows[slot_row[t,j]] = x[t]: each token's row at its experts. @param x [T, D]; slot_row [T, K]
void moe_dispatch(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* x,
                  const int32_t* slot_row, float* rows);

/// out[t] = chain over slots j upwards of fma(w[t,j], rows[slot_row[t,j]], acc) from 0, then +
/// shared[t].
/// @param rows [R, D] unweighted expert outputs; slot_row [T, K] row of each (token, slot);
/// @param weights [T, K], or null for weights of 1; shared [T, D] or null; out [T, D].
void moe_combine_fwd(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* shared,
                     float* out);
/// drows[slot_row[t,j]] = w[t,j]·dout[t] (written); dweights[t,j] = dot(rows[slot_row], dout[t]).
void moe_combine_bwd(const ExecContext& ctx, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* dout, float* drows,
                     float* dweights);

}  // namespace fathom
