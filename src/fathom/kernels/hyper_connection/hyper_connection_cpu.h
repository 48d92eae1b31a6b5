// The two builds of hyper_connection_cpu.cc. All of them work on tokens [begin, end) of one thread.
#pragma once

#include "fathom/kernels/hyper_connection/hyper_connection.h"

namespace fathom {

constexpr int64_t kHcMaxStreams = 8;
constexpr int64_t kHcTokenBlock = 16;  // one token per vector lane in the small per-token maths

/// Floats of scratch that hc_pre_bwd_tokens needs: the Sinkhorn steps of one block of tokens.
inline int64_t hc_pre_bwd_scratch(const HcShape& s) {
  return ((2 * s.sinkhorn_iters - 1) * (s.M * s.M + s.M) + s.M * s.M) * kHcTokenBlock;
}

/// Per-token results of a backward pass, reduced over tokens afterwards. N = rows of fn.
struct HcTokenGrads {
  float* dz;      // [T, N] gradient of the raw product fn * u
  float* dlogit;  // [T, N] gradient of scale * m + base: the token's part of d(base)
  float* dscale;  // [T, groups] the token's part of d(scale)
};

#define FATHOM_DECLARE_HC(isa)                                                                   \
  namespace isa {                                                                                \
  void hc_pre_fwd_tokens(const HcShape& s, const HcWeights& w, const float* x, float* y,         \
                         float* post, float* comb, int64_t begin, int64_t end);                  \
  void hc_post_fwd_tokens(const HcShape& s, const float* x, const float* f, const float* post,   \
                          const float* comb, float* out, int64_t begin, int64_t end);            \
  void hc_post_bwd_tokens(const HcShape& s, const float* x, const float* f, const float* post,   \
                          const float* comb, const float* dout, float* df, float* dpost,         \
                          float* dcomb, float* dx, int64_t begin, int64_t end);                  \
  void hc_pre_bwd_tokens(const HcShape& s, const HcWeights& w, const float* x, const float* dy,  \
                         const float* dpost, const float* dcomb, float* dx,                      \
                         const HcTokenGrads& grads, float* scratch, int64_t begin, int64_t end); \
  void hc_head_fwd_tokens(const HcShape& s, const HcWeights& w, const float* x, float* h,        \
                          int64_t begin, int64_t end);                                           \
  void hc_head_bwd_tokens(const HcShape& s, const HcWeights& w, const float* x, const float* dh, \
                          float* dx, const HcTokenGrads& grads, int64_t begin, int64_t end);     \
  }
FATHOM_DECLARE_HC(avx2)
FATHOM_DECLARE_HC(avx512)
#undef FATHOM_DECLARE_HC

}  // namespace fathom
