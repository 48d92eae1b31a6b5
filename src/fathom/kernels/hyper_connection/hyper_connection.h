// Manifold-constrained hyper-connections (mHC): mixing of M residual streams, with Sinkhorn.
// M = hc_mult; mixes has (2+M)·M rows in `fn` (pre M, post M, comb M·M). fp32.
//
// pre:  u = vec(x) [M·D]; ρ = 1/sqrt(Σu²/(M·D) + norm_eps) (row_ops order over M·D);
//       m_n = ρ·(fn_n · u), the product cut into splits of 1,024 along K, each one fma chain,
//       splits added upwards; pre_i = σ(m_i·s0 + b_i) + hc_eps; post_j = 2σ(m_{M+j}·s1 + b_{M+j});
//       comb = Sinkhorn(m_{2M+Mj+k}·s2 + b): row softmax, +hc_eps, column step, then iters−1 ×
//       (row, column) steps X /= (ΣX + hc_eps), sums in index order; y = chain over i of pre_i·x_i.
// post: out_k = post_k·f + Σ_j comb[j,k]·x_j: acc = post_k·f, then fma over j upwards.
// head: w_i = σ(m_i·s + b_i) + hc_eps with fn [M, M·D]; h = chain over i of w_i·x_i.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

constexpr int64_t kHcSplit = 1024;

struct HcShape {
  int64_t T, M, D;
  int sinkhorn_iters;
  float norm_eps, hc_eps;
};

/// Weights of one sublayer. fn is in panel layout (kernels/linear/panel.h) of [(2+M)·M, M·D].
struct HcWeights {
  const float* fn;
  const float* base;   // [(2+M)·M]
  const float* scale;  // [3]
};
struct HcGrads {  // added to; chains over tokens upwards
  float* fn;
  float* base;
  float* scale;
};

/// @param x [T, M, D]; @param y [T, D]; @param post [T, M]; @param comb [T, M, M] (source, target).
void hc_pre_fwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                float* y, float* post, float* comb);

/// @param f [T, D] sublayer output; @param out [T, M, D], not x's memory.
void hc_post_fwd(const ExecContext& ctx, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, float* out);

/// Gradient of hc_post: df [T, D], dpost [T, M], dcomb [T, M, M], dx [T, M, D] (all written).
void hc_post_bwd(const ExecContext& ctx, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, const float* dout, float* df, float* dpost,
                 float* dcomb, float* dx);

/// Gradient of hc_pre through the whole Sinkhorn: dx += ..., weights' gradients added to.
/// Everything needed is recomputed from x.
void hc_pre_bwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                const float* dy, const float* dpost, const float* dcomb, float* dx,
                const HcGrads& grads);

/// Collapse of the streams before the final norm. fn panel layout of [M, M·D], base [M], scale [1].
/// @param h [T, D]
void hc_head_fwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                 float* h);
/// dx [T, M, D] written.
void hc_head_bwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                 const float* dh, float* dx, const HcGrads& grads);

}  // namespace fathom
