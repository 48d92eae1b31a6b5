#include "fathom/kernels/hyper_connection/hyper_connection.h"

#include <algorithm>
#include <memory>

#include "fathom/base/error.h"
#include "fathom/kernels/hyper_connection/hyper_connection_cpu.h"
#include "fathom/kernels/hyper_connection/hyper_connection_cuda.h"
#include "fathom/kernels/linear/linear.h"

namespace fathom {
namespace {

void check_shape(const HcShape& s) {
  FATHOM_ASSERT(s.T >= 0 && s.D >= 1, "T = ", s.T, ", D = ", s.D);
  FATHOM_CHECK(s.M >= 1 && s.M <= kHcMaxStreams, "hyper_connection: hc_mult must be 1 to ",
               kHcMaxStreams, ", got ", s.M, "\n  fix: check hc_mult in the model's config.json");
  FATHOM_CHECK(s.sinkhorn_iters >= 1,
               "hyper_connection: hc_sinkhorn_iters must be at least 1, got ", s.sinkhorn_iters,
               "\n  fix: check hc_sinkhorn_iters in the model's config.json");
}

/// Tokens of one range: full blocks of lanes, fewer when that leaves a thread without work.
int64_t token_grain(const ExecContext& ctx, int64_t T) {
  const int64_t threads = ctx.threads->num_threads();
  return std::clamp<int64_t>((T + threads - 1) / threads, 1, kHcTokenBlock);
}

/// Per-token gradients in scratch memory, and their reduction over tokens upwards.
class TokenGradScratch {
 public:
  TokenGradScratch(int64_t T, int64_t N, int64_t groups)
      : T_(T),
        N_(N),
        groups_(groups),
        memory_(new float[static_cast<size_t>(T * (2 * N + groups))]) {}

  HcTokenGrads pointers() const {
    float* p = memory_.get();
    return {p, p + T_ * N_, p + 2 * T_ * N_};
  }

  /// dx += dz * fn, then d(fn), d(base) and d(scale) as chains over tokens.
  void reduce(const ExecContext& ctx, int64_t K, const HcWeights& w, const float* x, float* dx,
              const HcGrads& grads) const {
    const HcTokenGrads token = pointers();
    linear_bwd_input(ctx, {.dy = token.dz,
                           .dy_stride = N_,
                           .w_panels = w.fn,
                           .dx = dx,
                           .dx_stride = K,
                           .T = T_,
                           .N = N_,
                           .K = K,
                           .accumulate = true});
    linear_bwd_weight(ctx, {.x = x,
                            .x_stride = K,
                            .dy = token.dz,
                            .dy_stride = N_,
                            .dw_panels = grads.fn,
                            .T = T_,
                            .N = N_,
                            .K = K});
    for (int64_t t = 0; t < T_; ++t) {
      for (int64_t n = 0; n < N_; ++n) grads.base[n] += token.dlogit[t * N_ + n];
      for (int64_t g = 0; g < groups_; ++g) grads.scale[g] += token.dscale[t * groups_ + g];
    }
  }

 private:
  int64_t T_, N_, groups_;
  std::unique_ptr<float[]> memory_;
};

}  // namespace

void hc_pre_fwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                float* y, float* post, float* comb) {
  check_shape(s);
  if (s.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, hc_pre_fwd, s, w, x, y, post, comb);
  ctx.threads->parallel_for(s.T, token_grain(ctx, s.T), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, hc_pre_fwd_tokens, s, w, x, y, post, comb, begin, end);
  });
}

void hc_post_fwd(const ExecContext& ctx, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, float* out) {
  check_shape(s);
  if (s.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, hc_post_fwd, s, x, f, post, comb, out);
  ctx.threads->parallel_for(s.T, token_grain(ctx, s.T), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, hc_post_fwd_tokens, s, x, f, post, comb, out, begin, end);
  });
}

void hc_post_bwd(const ExecContext& ctx, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, const float* dout, float* df, float* dpost,
                 float* dcomb, float* dx) {
  check_shape(s);
  if (s.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, hc_post_bwd, s, x, f, post, comb, dout, df, dpost, dcomb, dx);
  ctx.threads->parallel_for(s.T, token_grain(ctx, s.T), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, hc_post_bwd_tokens, s, x, f, post, comb, dout, df, dpost, dcomb, dx,
                        begin, end);
  });
}

void hc_pre_bwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                const float* dy, const float* dpost, const float* dcomb, float* dx,
                const HcGrads& grads) {
  check_shape(s);
  if (s.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, hc_pre_bwd, s, w, x, dy, dpost, dcomb, dx, grads);
  const TokenGradScratch scratch(s.T, (2 + s.M) * s.M, 3);
  const HcTokenGrads token = scratch.pointers();
  ctx.threads->parallel_for(s.T, token_grain(ctx, s.T), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> steps(new float[static_cast<size_t>(hc_pre_bwd_scratch(s))]);
    FATHOM_CPU_DISPATCH(ctx, hc_pre_bwd_tokens, s, w, x, dy, dpost, dcomb, dx, token, steps.get(),
                        begin, end);
  });
  scratch.reduce(ctx, s.M * s.D, w, x, dx, grads);
}

void hc_head_fwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                 float* h) {
  check_shape(s);
  if (s.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, hc_head_fwd, s, w, x, h);
  ctx.threads->parallel_for(s.T, token_grain(ctx, s.T), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, hc_head_fwd_tokens, s, w, x, h, begin, end);
  });
}

void hc_head_bwd(const ExecContext& ctx, const HcShape& s, const HcWeights& w, const float* x,
                 const float* dh, float* dx, const HcGrads& grads) {
  check_shape(s);
  if (s.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, hc_head_bwd, s, w, x, dh, dx, grads);
  const TokenGradScratch scratch(s.T, s.M, 1);
  const HcTokenGrads token = scratch.pointers();
  ctx.threads->parallel_for(s.T, token_grain(ctx, s.T), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, hc_head_bwd_tokens, s, w, x, dh, dx, token, begin, end);
  });
  scratch.reduce(ctx, s.M * s.D, w, x, dx, grads);
}

}  // namespace fathom
