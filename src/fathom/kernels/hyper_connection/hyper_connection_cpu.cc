#include "fathom/kernels/hyper_connection/hyper_connection_cpu.h"

#include "fathom/kernels/hyper_connection/stream_mixing.h"
#include "fathom/numerics/row_ops.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

constexpr int64_t kBlock = kHcTokenBlock;
static_assert(kBlock == kLanes);

#if defined(__AVX512F__)
constexpr int kTokenTile = 8;  // 8 tokens x 2 panels = 16 of 32 registers
#else
constexpr int kTokenTile = 2;  // 2 tokens x 2 panels x 2 halves = 8 of 16 registers
#endif

// ---- raw products z = fn * u ----

/// Rows of kPanels panels for kTokens tokens: z[t * z_stride + 16 p ...].
template <int kTokens, int kPanels>
inline void products_tile(const float* fn, int64_t K, const float* u, float* z, int64_t z_stride) {
  F16 total[kTokens][kPanels] = {};
  for (int64_t k0 = 0; k0 < K; k0 += kHcSplit) {
    const int64_t k1 = k0 + kHcSplit < K ? k0 + kHcSplit : K;
    F16 acc[kTokens][kPanels];
    for (int t = 0; t < kTokens; ++t) {
      for (int p = 0; p < kPanels; ++p) acc[t][p] = zero();
    }
    for (int64_t k = k0; k < k1; ++k) {
      F16 weight[kPanels];
      for (int p = 0; p < kPanels; ++p) weight[p] = load(fn + (p * K + k) * kLanes);
      for (int t = 0; t < kTokens; ++t) {
        const F16 a = set1(u[t * K + k]);
        for (int p = 0; p < kPanels; ++p) acc[t][p] = fma(a, weight[p], acc[t][p]);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int p = 0; p < kPanels; ++p) {
        total[t][p] = k0 == 0 ? acc[t][p] : add(total[t][p], acc[t][p]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int p = 0; p < kPanels; ++p) store(z + t * z_stride + p * kLanes, total[t][p]);
  }
}

/// One token with several splits in flight, so that the chains hide each other's latency.
template <int kPanels>
inline void products_one_token(const float* fn, int64_t K, const float* u, float* z) {
  constexpr int kSplits = 4;
  F16 total[kPanels];
  for (int p = 0; p < kPanels; ++p) total[p] = zero();
  int64_t k0 = 0;
  for (; k0 + kSplits * kHcSplit <= K; k0 += kSplits * kHcSplit) {
    F16 acc[kSplits][kPanels];
    for (int s = 0; s < kSplits; ++s) {
      for (int p = 0; p < kPanels; ++p) acc[s][p] = zero();
    }
    for (int64_t k = k0; k < k0 + kHcSplit; ++k) {
      for (int s = 0; s < kSplits; ++s) {
        const int64_t at = k + s * kHcSplit;
        const F16 a = set1(u[at]);
        for (int p = 0; p < kPanels; ++p) {
          acc[s][p] = fma(a, load(fn + (p * K + at) * kLanes), acc[s][p]);
        }
      }
    }
    for (int p = 0; p < kPanels; ++p) {
      if (k0 > 0) acc[0][p] = add(total[p], acc[0][p]);
      total[p] = acc[0][p];
      for (int s = 1; s < kSplits; ++s) total[p] = add(total[p], acc[s][p]);
    }
  }
  for (; k0 < K; k0 += kHcSplit) {
    const int64_t k1 = k0 + kHcSplit < K ? k0 + kHcSplit : K;
    F16 acc[kPanels];
    for (int p = 0; p < kPanels; ++p) acc[p] = zero();
    for (int64_t k = k0; k < k1; ++k) {
      const F16 a = set1(u[k]);
      for (int p = 0; p < kPanels; ++p) acc[p] = fma(a, load(fn + (p * K + k) * kLanes), acc[p]);
    }
    for (int p = 0; p < kPanels; ++p) total[p] = k0 == 0 ? acc[p] : add(total[p], acc[p]);
  }
  for (int p = 0; p < kPanels; ++p) store(z + p * kLanes, total[p]);
}

template <int kTokens, int kPanels>
inline void products_tokens(const float* fn, int64_t K, const float* u, int64_t count, float* z,
                            int64_t z_stride) {
  if constexpr (kTokens == 1) {
    for (int64_t t = 0; t < count; ++t) {
      products_one_token<kPanels>(fn, K, u + t * K, z + t * z_stride);
    }
  } else {
    int64_t t = 0;
    for (; t + kTokens <= count; t += kTokens) {
      products_tile<kTokens, kPanels>(fn, K, u + t * K, z + t * z_stride, z_stride);
    }
    products_tokens<kTokens / 2, kPanels>(fn, K, u + t * K, count - t, z + t * z_stride, z_stride);
  }
}

/// Rows of fn for M streams; with S::kMax the size of arrays.
constexpr int num_mixes(int M) { return (2 + M) * M; }

/// What one block of tokens needs of fn * u and of |u|; lane = token.
template <int kMaxN>
struct Products {
  F16 z[kMaxN];
  F16 rho;
};

template <int kMaxN>
inline Products<kMaxN> products(const HcShape& s, const float* fn, int N, const float* u,
                                int64_t count) {
  constexpr int kMaxPanels = (kMaxN + kLanes - 1) / kLanes;
  constexpr int64_t kStride = kMaxPanels * kLanes;
  const int num_panels = (N + kLanes - 1) / kLanes;
  const int64_t K = s.M * s.D;
  float rows[kBlock * kStride];
  int p = 0;
  for (; p + 2 <= num_panels; p += 2) {
    products_tokens<kTokenTile, 2>(fn + p * K * kLanes, K, u, count, rows + p * kLanes, kStride);
  }
  if (p < num_panels) {
    products_tokens<kTokenTile, 1>(fn + p * K * kLanes, K, u, count, rows + p * kLanes, kStride);
  }
  float lanes[kBlock] = {};
  for (int64_t t = 0; t < count; ++t) lanes[t] = dot(u + t * K, u + t * K, K);
  Products<kMaxN> result;
  const F16 mean_square = div(load(lanes), set1(static_cast<float>(K)));
  result.rho = div(set1(1.0f), sqrt(add(mean_square, set1(s.norm_eps))));
  for (int n = 0; n < N; ++n) {
    float column[kBlock] = {};
    for (int64_t t = 0; t < count; ++t) column[t] = rows[t * kStride + n];
    result.z[n] = load(column);
  }
  return result;
}

/// [count, width] rows of memory <-> one vector per column, lane = token.
inline void load_columns(const float* rows, int width, int64_t count, F16* columns) {
  for (int n = 0; n < width; ++n) {
    float column[kBlock] = {};
    for (int64_t t = 0; t < count; ++t) column[t] = rows[t * width + n];
    columns[n] = load(column);
  }
}
inline void store_columns(const F16* columns, int width, int64_t count, float* rows) {
  for (int n = 0; n < width; ++n) {
    float column[kBlock];
    store(column, columns[n]);
    for (int64_t t = 0; t < count; ++t) rows[t * width + n] = column[t];
  }
}

// ---- the small maths of a token, lane = token ----

template <class S>
struct Mixes {
  static constexpr int kMaxN = num_mixes(S::kMax);
  F16 m[kMaxN];        // rho * z
  F16 pre_s[S::kMax];  // sigma, without hc_eps
  F16 post[S::kMax];
  F16 logits[S::kMax * S::kMax];
};

template <class S>
inline Mixes<S> split_mixes(S M, const HcWeights& w, const Products<Mixes<S>::kMaxN>& r) {
  Mixes<S> x;
  for (int n = 0; n < num_mixes(M); ++n) x.m[n] = mul(r.rho, r.z[n]);
  const F16 s0 = set1(w.scale[0]), s1 = set1(w.scale[1]), s2 = set1(w.scale[2]);
  for (int i = 0; i < M; ++i) {
    x.pre_s[i] = sigmoid(fma(x.m[i], s0, set1(w.base[i])));
    const F16 gate = sigmoid(fma(x.m[M + i], s1, set1(w.base[M + i])));
    x.post[i] = add(gate, gate);
  }
  for (int n = 0; n < M * M; ++n) {
    x.logits[n] = fma(x.m[2 * M + n], s2, set1(w.base[2 * M + n]));
  }
  return x;
}

template <class S>
inline void row_softmax(S M, const F16* logits, F16* p) {
  for (int j = 0; j < M; ++j) {
    F16 best = logits[j * M];
    for (int k = 1; k < M; ++k) best = max(logits[j * M + k], best);
    F16 sum = zero();
    for (int k = 0; k < M; ++k) {
      p[j * M + k] = exp(sub(logits[j * M + k], best));
      sum = k == 0 ? p[j * M] : add(sum, p[j * M + k]);
    }
    for (int k = 0; k < M; ++k) p[j * M + k] = div(p[j * M + k], sum);
  }
}

/// One step X /= (sum of X + eps) over columns (kColumns) or rows; denominators go to `den` [M].
template <bool kColumns, class S>
inline void normalise(S M, F16* X, F16 eps, F16* den) {
  const int outer = kColumns ? 1 : M, inner = kColumns ? M : 1;
  for (int a = 0; a < M; ++a) {
    F16 sum = X[a * outer];
    for (int b = 1; b < M; ++b) sum = add(sum, X[a * outer + b * inner]);
    den[a] = add(sum, eps);
    for (int b = 0; b < M; ++b) X[a * outer + b * inner] = div(X[a * outer + b * inner], den[a]);
  }
}

/// dX = (dY - sum(dY * Y)) / den over the same axis, in place.
template <bool kColumns, class S>
inline void normalise_bwd(S M, const F16* Y, const F16* den, F16* dX) {
  const int outer = kColumns ? 1 : M, inner = kColumns ? M : 1;
  for (int a = 0; a < M; ++a) {
    F16 sum = mul(dX[a * outer], Y[a * outer]);
    for (int b = 1; b < M; ++b) {
      const int at = a * outer + b * inner;
      sum = fma(dX[at], Y[at], sum);
    }
    const F16 inverse = div(set1(1.0f), den[a]);
    for (int b = 0; b < M; ++b) {
      const int at = a * outer + b * inner;
      dX[at] = mul(sub(dX[at], sum), inverse);
    }
  }
}

template <class S>
inline void sinkhorn(S M, const HcShape& s, const F16* logits, F16* X) {
  const F16 eps = set1(s.hc_eps);
  F16 den[S::kMax];
  row_softmax(M, logits, X);
  for (int n = 0; n < M * M; ++n) X[n] = add(X[n], eps);
  normalise<true>(M, X, eps, den);
  for (int i = 1; i < s.sinkhorn_iters; ++i) {
    normalise<false>(M, X, eps, den);
    normalise<true>(M, X, eps, den);
  }
}

inline void store_all(const F16* values, int count, float* p) {
  for (int n = 0; n < count; ++n) store(p + n * kLanes, values[n]);
}
inline void load_all(const float* p, int count, F16* values) {
  for (int n = 0; n < count; ++n) values[n] = load(p + n * kLanes);
}

/// Gradient through Sinkhorn and the row softmax. G holds d(comb) and becomes d(logits).
/// scratch: softmax output, then (Y, den) of every step (hc_pre_bwd_scratch).
template <class S>
inline void sinkhorn_bwd(S M, const HcShape& s, const F16* logits, F16* G, float* scratch) {
  const int64_t step = (M * M + M) * kLanes;
  const F16 eps = set1(s.hc_eps);
  const int num_steps = 2 * s.sinkhorn_iters - 1;
  float* const steps = scratch + M * M * kLanes;
  F16 X[S::kMax * S::kMax], den[S::kMax];
  row_softmax(M, logits, X);
  store_all(X, M * M, scratch);
  for (int n = 0; n < M * M; ++n) X[n] = add(X[n], eps);
  for (int i = 0; i < num_steps; ++i) {
    if (i % 2 == 0) {
      normalise<true>(M, X, eps, den);
    } else {
      normalise<false>(M, X, eps, den);
    }
    store_all(X, M * M, steps + i * step);
    store_all(den, M, steps + i * step + M * M * kLanes);
  }
  for (int i = num_steps - 1; i >= 0; --i) {
    load_all(steps + i * step, M * M, X);
    load_all(steps + i * step + M * M * kLanes, M, den);
    if (i % 2 == 0) {
      normalise_bwd<true>(M, X, den, G);
    } else {
      normalise_bwd<false>(M, X, den, G);
    }
  }
  load_all(scratch, M * M, X);
  for (int j = 0; j < M; ++j) {
    F16 sum = mul(G[j * M], X[j * M]);
    for (int k = 1; k < M; ++k) sum = fma(G[j * M + k], X[j * M + k], sum);
    for (int k = 0; k < M; ++k) G[j * M + k] = mul(X[j * M + k], sub(G[j * M + k], sum));
  }
}

/// dz = rho * dm and 2 dq from dm = dlogit * scale; dq = -rho^3 / (2 K) * sum_n z_n dm_n.
template <int kMaxN>
inline F16 products_bwd(const Products<kMaxN>& r, int N, const F16* dm, int64_t K, F16* dz) {
  F16 sum = mul(r.z[0], dm[0]);
  for (int n = 1; n < N; ++n) sum = fma(r.z[n], dm[n], sum);
  for (int n = 0; n < N; ++n) dz[n] = mul(r.rho, dm[n]);
  const F16 rho3 = mul(mul(r.rho, r.rho), r.rho);
  return mul(div(rho3, set1(-static_cast<float>(K))), sum);
}

// ---- the entry points for a fixed M ----

template <class S>
void pre_fwd(S M, const HcShape& s, const HcWeights& w, const float* x, float* y, float* post,
             float* comb, int64_t begin, int64_t end) {
  const int64_t K = M * s.D;
  for (int64_t t0 = begin; t0 < end; t0 += kBlock) {
    const int64_t count = end - t0 < kBlock ? end - t0 : kBlock;
    const auto r = products<Mixes<S>::kMaxN>(s, w.fn, num_mixes(M), x + t0 * K, count);
    const Mixes<S> mixes = split_mixes(M, w, r);
    F16 pre[S::kMax], X[S::kMax * S::kMax];
    for (int i = 0; i < M; ++i) pre[i] = add(mixes.pre_s[i], set1(s.hc_eps));
    sinkhorn(M, s, mixes.logits, X);
    store_columns(mixes.post, M, count, post + t0 * M);
    store_columns(X, M * M, count, comb + t0 * M * M);
    float weights[kBlock * S::kMax];
    store_columns(pre, M, count, weights);
    for (int64_t t = 0; t < count; ++t) {
      mix_streams(M, x + (t0 + t) * K, weights + t * M, 1, s.D, y + (t0 + t) * s.D);
    }
  }
}

template <class S>
void pre_bwd(S M, const HcShape& s, const HcWeights& w, const float* x, const float* dy,
             const float* dpost, const float* dcomb, float* dx, const HcTokenGrads& grads,
             float* scratch, int64_t begin, int64_t end) {
  constexpr int kMaxN = Mixes<S>::kMaxN;
  const int N = num_mixes(M);
  const int64_t K = M * s.D;
  const F16 one = set1(1.0f), half = set1(0.5f);
  for (int64_t t0 = begin; t0 < end; t0 += kBlock) {
    const int64_t count = end - t0 < kBlock ? end - t0 : kBlock;
    const auto r = products<kMaxN>(s, w.fn, N, x + t0 * K, count);
    const Mixes<S> mixes = split_mixes(M, w, r);
    float dpre_rows[kBlock * S::kMax];
    for (int64_t t = 0; t < count; ++t) {
      dot_streams(M, x + (t0 + t) * K, dy + (t0 + t) * s.D, s.D, dpre_rows + t * M, 1);
    }
    F16 g[kMaxN], dpost_c[S::kMax];  // gradients of the logits scale * m + base
    load_columns(dpre_rows, M, count, g);
    load_columns(dpost + t0 * M, M, count, dpost_c);
    load_columns(dcomb + t0 * M * M, M * M, count, g + 2 * M);
    for (int i = 0; i < M; ++i) {
      const F16 sigma = mixes.pre_s[i], p = mixes.post[i];
      g[i] = mul(g[i], mul(sigma, sub(one, sigma)));
      g[M + i] = mul(dpost_c[i], mul(p, fnma(half, p, one)));
    }
    sinkhorn_bwd(M, s, mixes.logits, g + 2 * M, scratch);

    F16 dm[kMaxN], dz[kMaxN], dscale[3];
    const int first[4] = {0, M, 2 * M, N};
    for (int group = 0; group < 3; ++group) {
      const F16 scale = set1(w.scale[group]);
      dscale[group] = zero();
      for (int n = first[group]; n < first[group + 1]; ++n) {
        dscale[group] = fma(g[n], mixes.m[n], dscale[group]);
        dm[n] = mul(g[n], scale);
      }
    }
    const F16 two_dq = products_bwd(r, N, dm, K, dz);
    store_columns(dz, N, count, grads.dz + t0 * N);
    store_columns(g, N, count, grads.dlogit + t0 * N);
    store_columns(dscale, 3, count, grads.dscale + t0 * 3);

    F16 pre[S::kMax];
    for (int i = 0; i < M; ++i) pre[i] = add(mixes.pre_s[i], set1(s.hc_eps));
    float weights[kBlock * S::kMax], two_dq_rows[kBlock];
    store_columns(pre, M, count, weights);
    store(two_dq_rows, two_dq);
    for (int64_t t = 0; t < count; ++t) {
      add_stream_grads<false>(M, x + (t0 + t) * K, dy + (t0 + t) * s.D, weights + t * M,
                              two_dq_rows[t], s.D, dx + (t0 + t) * K);
    }
  }
}

template <class S>
inline void head_gates(S M, const HcWeights& w, const Products<S::kMax>& r, F16* m, F16* sigma) {
  const F16 scale = set1(w.scale[0]);
  for (int i = 0; i < M; ++i) {
    m[i] = mul(r.rho, r.z[i]);
    sigma[i] = sigmoid(fma(m[i], scale, set1(w.base[i])));
  }
}

template <class S>
void head_fwd(S M, const HcShape& s, const HcWeights& w, const float* x, float* h, int64_t begin,
              int64_t end) {
  const int64_t K = M * s.D;
  for (int64_t t0 = begin; t0 < end; t0 += kBlock) {
    const int64_t count = end - t0 < kBlock ? end - t0 : kBlock;
    const auto r = products<S::kMax>(s, w.fn, M, x + t0 * K, count);
    F16 m[S::kMax], gate[S::kMax];
    head_gates(M, w, r, m, gate);
    for (int i = 0; i < M; ++i) gate[i] = add(gate[i], set1(s.hc_eps));
    float weights[kBlock * S::kMax];
    store_columns(gate, M, count, weights);
    for (int64_t t = 0; t < count; ++t) {
      mix_streams(M, x + (t0 + t) * K, weights + t * M, 1, s.D, h + (t0 + t) * s.D);
    }
  }
}

template <class S>
void head_bwd(S M, const HcShape& s, const HcWeights& w, const float* x, const float* dh, float* dx,
              const HcTokenGrads& grads, int64_t begin, int64_t end) {
  const int64_t K = M * s.D;
  const F16 one = set1(1.0f), scale = set1(w.scale[0]);
  for (int64_t t0 = begin; t0 < end; t0 += kBlock) {
    const int64_t count = end - t0 < kBlock ? end - t0 : kBlock;
    const auto r = products<S::kMax>(s, w.fn, M, x + t0 * K, count);
    F16 m[S::kMax], sigma[S::kMax], g[S::kMax], dm[S::kMax], dz[S::kMax], dscale = zero();
    head_gates(M, w, r, m, sigma);
    float rows[kBlock * S::kMax];
    for (int64_t t = 0; t < count; ++t) {
      dot_streams(M, x + (t0 + t) * K, dh + (t0 + t) * s.D, s.D, rows + t * M, 1);
    }
    load_columns(rows, M, count, g);
    for (int i = 0; i < M; ++i) {
      g[i] = mul(g[i], mul(sigma[i], sub(one, sigma[i])));
      dscale = fma(g[i], m[i], dscale);
      dm[i] = mul(g[i], scale);
    }
    const F16 two_dq = products_bwd(r, M, dm, K, dz);
    store_columns(dz, M, count, grads.dz + t0 * M);
    store_columns(g, M, count, grads.dlogit + t0 * M);
    store_columns(&dscale, 1, count, grads.dscale + t0);
    for (int i = 0; i < M; ++i) sigma[i] = add(sigma[i], set1(s.hc_eps));
    float two_dq_rows[kBlock];
    store_columns(sigma, M, count, rows);
    store(two_dq_rows, two_dq);
    for (int64_t t = 0; t < count; ++t) {
      add_stream_grads<true>(M, x + (t0 + t) * K, dh + (t0 + t) * s.D, rows + t * M, two_dq_rows[t],
                             s.D, dx + (t0 + t) * K);
    }
  }
}

template <class S>
void post_fwd(S M, const HcShape& s, const float* x, const float* f, const float* post,
              const float* comb, float* out, int64_t begin, int64_t end) {
  const int64_t K = M * s.D;
  for (int64_t t = begin; t < end; ++t) {
    mix_post(M, x + t * K, f + t * s.D, post + t * M, comb + t * M * M, s.D, out + t * K);
  }
}

template <class S>
void post_bwd(S M, const HcShape& s, const float* x, const float* f, const float* post,
              const float* comb, const float* dout, float* df, float* dpost, float* dcomb,
              float* dx, int64_t begin, int64_t end) {
  const int64_t K = M * s.D;
  for (int64_t t = begin; t < end; ++t) {
    const float* g = dout + t * K;
    const float* c = comb + t * M * M;
    for (int k = 0; k < M; ++k) {
      dot_streams(M, x + t * K, g + k * s.D, s.D, dcomb + t * M * M + k, M);
      dpost[t * M + k] = dot(f + t * s.D, g + k * s.D, s.D);
    }
    mix_streams(M, g, post + t * M, 1, s.D, df + t * s.D);
    for (int j = 0; j < M; ++j) mix_streams(M, g, c + j * M, 1, s.D, dx + t * K + j * s.D);
  }
}

}  // namespace

// The released models have 4 streams.
#define FATHOM_HC_BY_STREAMS(fn, ...) \
  if (s.M == 4) {                     \
    fn(Streams<4>(s), __VA_ARGS__);   \
  } else {                            \
    fn(Streams<0>(s), __VA_ARGS__);   \
  }

void hc_pre_fwd_tokens(const HcShape& s, const HcWeights& w, const float* x, float* y, float* post,
                       float* comb, int64_t begin, int64_t end) {
  FATHOM_HC_BY_STREAMS(pre_fwd, s, w, x, y, post, comb, begin, end)
}

void hc_post_fwd_tokens(const HcShape& s, const float* x, const float* f, const float* post,
                        const float* comb, float* out, int64_t begin, int64_t end) {
  FATHOM_HC_BY_STREAMS(post_fwd, s, x, f, post, comb, out, begin, end)
}

void hc_post_bwd_tokens(const HcShape& s, const float* x, const float* f, const float* post,
                        const float* comb, const float* dout, float* df, float* dpost, float* dcomb,
                        float* dx, int64_t begin, int64_t end) {
  FATHOM_HC_BY_STREAMS(post_bwd, s, x, f, post, comb, dout, df, dpost, dcomb, dx, begin, end)
}

void hc_pre_bwd_tokens(const HcShape& s, const HcWeights& w, const float* x, const float* dy,
                       const float* dpost, const float* dcomb, float* dx, const HcTokenGrads& grads,
                       float* scratch, int64_t begin, int64_t end) {
  FATHOM_HC_BY_STREAMS(pre_bwd, s, w, x, dy, dpost, dcomb, dx, grads, scratch, begin, end)
}

void hc_head_fwd_tokens(const HcShape& s, const HcWeights& w, const float* x, float* h,
                        int64_t begin, int64_t end) {
  FATHOM_HC_BY_STREAMS(head_fwd, s, w, x, h, begin, end)
}

void hc_head_bwd_tokens(const HcShape& s, const HcWeights& w, const float* x, const float* dh,
                        float* dx, const HcTokenGrads& grads, int64_t begin, int64_t end) {
  FATHOM_HC_BY_STREAMS(head_bwd, s, w, x, dh, dx, grads, begin, end)
}

#undef FATHOM_HC_BY_STREAMS

}  // namespace FATHOM_ISA
}  // namespace fathom
