// Products with fn: a block a token, one thread per (row of fn, split of K). The small maths of a
// token, Sinkhorn included, is one thread's; sums over D are 16 threads'; mixing is one thread per
// element.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/hyper_connection/hyper_connection_cuda.h"
#include "fathom/kernels/linear/linear_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kHalves = kThreads / kRowLanes, kTokenThreads = 64;
constexpr int kMaxM = 8, kMaxN = (2 + kMaxM) * kMaxM;

/// z[t, n] = fn_n . u_t, K in splits of kHcSplit. Shared memory: a sum per (n, split).
__global__ void hc_products_kernel(int64_t K, int64_t N, int64_t num_splits, const float* fn,
                                   const float* x, float* z) {
  extern __shared__ float sums[];
  const float* u = x + blockIdx.x * K;
  for (int64_t c = threadIdx.x; c < N * num_splits; c += kThreads) {
    const int64_t n = c / num_splits, begin = c % num_splits * kHcSplit;
    const int64_t end = begin + kHcSplit < K ? begin + kHcSplit : K;
    const float* w = fn + n * K;
    float acc = 0.0f;
#pragma unroll 8
    for (int64_t k = begin; k < end; ++k) acc = fmaf(u[k], w[k], acc);
    sums[c] = acc;
  }
  __syncthreads();
  for (int64_t n = threadIdx.x; n < N; n += kThreads) {
    float total = sums[n * num_splits];
    for (int64_t s = 1; s < num_splits; ++s) total = total + sums[n * num_splits + s];
    z[blockIdx.x * N + n] = total;
  }
}

__global__ void hc_rho_kernel(int64_t T, int64_t K, float eps, const float* x, float* rho) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kHalves) + threadIdx.x / kRowLanes;
  if (t >= T) return;
  const float square = dot_lanes(x + t * K, x + t * K, K);
  if (row_lane() == 0) rho[t] = 1.0f / sqrtf(square / static_cast<float>(K) + eps);
}

/// What a token's gates are made of.
struct TokenInputs {
  const float* z;    // [T, N]
  const float* rho;  // [T]
};

struct Mixes {
  float m[kMaxN], pre_s[kMaxM], post[kMaxM], logits[kMaxM * kMaxM];
};

__device__ inline void split_mixes(int M, const HcWeights& w, const float* z, float rho, Mixes& x) {
  for (int n = 0; n < (2 + M) * M; ++n) x.m[n] = rho * z[n];
  const float s0 = w.scale[0], s1 = w.scale[1], s2 = w.scale[2];
  for (int i = 0; i < M; ++i) {
    x.pre_s[i] = sigmoid_of(fmaf(x.m[i], s0, w.base[i]));
    const float gate = sigmoid_of(fmaf(x.m[M + i], s1, w.base[M + i]));
    x.post[i] = gate + gate;
  }
  for (int n = 0; n < M * M; ++n) x.logits[n] = fmaf(x.m[2 * M + n], s2, w.base[2 * M + n]);
}

__device__ inline void row_softmax(int M, const float* logits, float* p) {
  for (int j = 0; j < M; ++j) {
    float best = logits[j * M];
    for (int k = 1; k < M; ++k) best = max_of(logits[j * M + k], best);
    float sum = 0.0f;
    for (int k = 0; k < M; ++k) {
      p[j * M + k] = exp_of(logits[j * M + k] - best);
      sum = k == 0 ? p[j * M] : sum + p[j * M + k];
    }
    for (int k = 0; k < M; ++k) p[j * M + k] = p[j * M + k] / sum;
  }
}

/// One step X /= (sum of X + eps) over columns or rows; denominators go to den [M].
__device__ inline void normalise(bool columns, int M, float* X, float eps, float* den) {
  const int outer = columns ? 1 : M, inner = columns ? M : 1;
  for (int a = 0; a < M; ++a) {
    float sum = X[a * outer];
    for (int b = 1; b < M; ++b) sum = sum + X[a * outer + b * inner];
    den[a] = sum + eps;
    for (int b = 0; b < M; ++b) X[a * outer + b * inner] = X[a * outer + b * inner] / den[a];
  }
}

__global__ void hc_gates_kernel(const HcShape s, const HcWeights w, const TokenInputs in,
                                float* pre, float* post, float* comb) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kTokenThreads) + threadIdx.x;
  if (t >= s.T) return;
  const int M = static_cast<int>(s.M);
  Mixes x;
  split_mixes(M, w, in.z + t * (2 + M) * M, in.rho[t], x);
  float X[kMaxM * kMaxM], den[kMaxM];
  row_softmax(M, x.logits, X);
  for (int n = 0; n < M * M; ++n) X[n] = X[n] + s.hc_eps;
  normalise(true, M, X, s.hc_eps, den);
  for (int i = 1; i < s.sinkhorn_iters; ++i) {
    normalise(false, M, X, s.hc_eps, den);
    normalise(true, M, X, s.hc_eps, den);
  }
  for (int i = 0; i < M; ++i) {
    pre[t * M + i] = x.pre_s[i] + s.hc_eps;
    post[t * M + i] = x.post[i];
  }
  for (int n = 0; n < M * M; ++n) comb[t * M * M + n] = X[n];
}

__global__ void hc_head_gates_kernel(const HcShape s, const HcWeights w, const TokenInputs in,
                                     float* gates) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kTokenThreads) + threadIdx.x;
  if (i >= s.T * s.M) return;
  const float m = in.rho[i / s.M] * in.z[i];
  gates[i] = sigmoid_of(fmaf(m, w.scale[0], w.base[i % s.M])) + s.hc_eps;
}

/// y[t] = sum over i upwards of weights[t * row + i] * x[t, i].
__global__ void mix_streams_kernel(int64_t n, int64_t M, int64_t D, const float* x,
                                   const float* weights, int64_t row, float* y) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const int64_t t = i / D, d = i % D;
  const float* w = weights + t * row;
  float acc = w[0] * x[t * M * D + d];
  for (int64_t j = 1; j < M; ++j) acc = fmaf(w[j], x[(t * M + j) * D + d], acc);
  y[i] = acc;
}

__global__ void hc_post_fwd_kernel(const HcShape s, const float* x, const float* f,
                                   const float* post, const float* comb, float* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= s.T * s.M * s.D) return;
  const int64_t d = i % s.D, k = i / s.D % s.M, t = i / (s.D * s.M);
  float acc = post[t * s.M + k] * f[t * s.D + d];
  for (int64_t j = 0; j < s.M; ++j) {
    acc = fmaf(comb[(t * s.M + j) * s.M + k], x[(t * s.M + j) * s.D + d], acc);
  }
  out[i] = acc;
}

/// dx[t, j] = sum over k upwards of comb[t, j, k] * dout[t, k].
__global__ void hc_post_dx_kernel(const HcShape s, const float* comb, const float* dout,
                                  float* dx) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= s.T * s.M * s.D) return;
  const int64_t d = i % s.D, row = i / s.D, t = row / s.M;
  const float* c = comb + row * s.M;
  float acc = c[0] * dout[t * s.M * s.D + d];
  for (int64_t k = 1; k < s.M; ++k) acc = fmaf(c[k], dout[(t * s.M + k) * s.D + d], acc);
  dx[i] = acc;
}

/// 16 threads a dot product: (j, k) of dcomb for j < M, then k of dpost.
__global__ void hc_post_dots_kernel(const HcShape s, const float* x, const float* f,
                                    const float* dout, float* dpost, float* dcomb) {
  const int64_t item = blockIdx.x * static_cast<int64_t>(kHalves) + threadIdx.x / kRowLanes;
  const int64_t per_token = (s.M + 1) * s.M;
  if (item >= s.T * per_token) return;
  const int64_t t = item / per_token, j = item % per_token / s.M, k = item % s.M;
  const float* left = j < s.M ? x + (t * s.M + j) * s.D : f + t * s.D;
  const float dot = dot_lanes(left, dout + (t * s.M + k) * s.D, s.D);
  if (row_lane() != 0) return;
  if (j < s.M) {
    dcomb[(t * s.M + j) * s.M + k] = dot;
  } else {
    dpost[t * s.M + k] = dot;
  }
}

/// dots[t, i] = x[t, i] . g[t].
__global__ void stream_dots_kernel(int64_t n, int64_t M, int64_t D, const float* x, const float* g,
                                   float* dots) {
  const int64_t item = blockIdx.x * static_cast<int64_t>(kHalves) + threadIdx.x / kRowLanes;
  if (item >= n) return;
  const float dot = dot_lanes(x + item * D, g + item / M * D, D);
  if (row_lane() == 0) dots[item] = dot;
}

/// dX = (dY - sum(dY * Y)) / den over the same axis, in place.
__device__ inline void normalise_bwd(bool columns, int M, const float* Y, const float* den,
                                     float* dX) {
  const int outer = columns ? 1 : M, inner = columns ? M : 1;
  for (int a = 0; a < M; ++a) {
    float sum = dX[a * outer] * Y[a * outer];
    for (int b = 1; b < M; ++b)
      sum = fmaf(dX[a * outer + b * inner], Y[a * outer + b * inner], sum);
    const float inverse = 1.0f / den[a];
    for (int b = 0; b < M; ++b) {
      const int at = a * outer + b * inner;
      dX[at] = (dX[at] - sum) * inverse;
    }
  }
}

/// Floats of one token's Sinkhorn steps.
__host__ __device__ inline int64_t steps_size(const HcShape& s) {
  return (2 * s.sinkhorn_iters - 1) * (s.M * s.M + s.M) + s.M * s.M;
}

/// Per-token results of a backward pass.
struct TokenGrads {
  float* dz;      // [T, N]
  float* dlogit;  // [T, N]
  float* dscale;  // [T, groups]
  float* gates;   // [T, M]: pre, or the head's gates
  float* two_dq;  // [T]
};

/// dz and 2 dq from dm, for N rows of fn.
__device__ inline void products_bwd(const float* z, float rho, int N, const float* dm, int64_t K,
                                    float* dz, float* two_dq) {
  float sum = z[0] * dm[0];
  for (int n = 1; n < N; ++n) sum = fmaf(z[n], dm[n], sum);
  for (int n = 0; n < N; ++n) dz[n] = rho * dm[n];
  *two_dq = (((rho * rho) * rho) / -static_cast<float>(K)) * sum;
}

/// @param dpre [T, M]; steps [steps_size, T]
__global__ void hc_pre_bwd_kernel(const HcShape s, const HcWeights w, const TokenInputs in,
                                  const float* dpre, const float* dpost, const float* dcomb,
                                  float* steps, const TokenGrads grads) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kTokenThreads) + threadIdx.x;
  if (t >= s.T) return;
  const int M = static_cast<int>(s.M), N = (2 + M) * M;
  const float* z = in.z + t * N;
  Mixes x;
  split_mixes(M, w, z, in.rho[t], x);
  float g[kMaxN];  // gradients of the logits scale * m + base
  for (int i = 0; i < M; ++i) {
    const float sigma = x.pre_s[i], p = x.post[i];
    g[i] = dpre[t * M + i] * (sigma * (1.0f - sigma));
    g[M + i] = dpost[t * M + i] * (p * fmaf(-0.5f, p, 1.0f));
  }
  float* G = g + 2 * M;
  for (int n = 0; n < M * M; ++n) G[n] = dcomb[t * M * M + n];

  // Forward through Sinkhorn, keeping every step, then back.
  const int num_steps = 2 * s.sinkhorn_iters - 1;
  float X[kMaxM * kMaxM], den[kMaxM];
  row_softmax(M, x.logits, X);
  int64_t at = 0;
  const auto keep = [&](const float* values, int count) {
    for (int n = 0; n < count; ++n) steps[at++ * s.T + t] = values[n];
  };
  keep(X, M * M);
  for (int n = 0; n < M * M; ++n) X[n] = X[n] + s.hc_eps;
  for (int i = 0; i < num_steps; ++i) {
    normalise(i % 2 == 0, M, X, s.hc_eps, den);
    keep(X, M * M);
    keep(den, M);
  }
  for (int i = num_steps - 1; i >= 0; --i) {
    const int64_t from = M * M + i * static_cast<int64_t>(M * M + M);
    for (int n = 0; n < M * M; ++n) X[n] = steps[(from + n) * s.T + t];
    for (int n = 0; n < M; ++n) den[n] = steps[(from + M * M + n) * s.T + t];
    normalise_bwd(i % 2 == 0, M, X, den, G);
  }
  for (int n = 0; n < M * M; ++n) X[n] = steps[n * s.T + t];
  for (int j = 0; j < M; ++j) {
    float sum = G[j * M] * X[j * M];
    for (int k = 1; k < M; ++k) sum = fmaf(G[j * M + k], X[j * M + k], sum);
    for (int k = 0; k < M; ++k) G[j * M + k] = X[j * M + k] * (G[j * M + k] - sum);
  }

  float dm[kMaxN];
  const int first[4] = {0, M, 2 * M, N};
  for (int group = 0; group < 3; ++group) {
    float dscale = 0.0f;
    for (int n = first[group]; n < first[group + 1]; ++n) {
      dscale = fmaf(g[n], x.m[n], dscale);
      dm[n] = g[n] * w.scale[group];
    }
    grads.dscale[t * 3 + group] = dscale;
  }
  products_bwd(z, in.rho[t], N, dm, s.M * s.D, grads.dz + t * N, grads.two_dq + t);
  for (int n = 0; n < N; ++n) grads.dlogit[t * N + n] = g[n];
  for (int i = 0; i < M; ++i) grads.gates[t * M + i] = x.pre_s[i] + s.hc_eps;
}

/// @param dgate [T, M]
__global__ void hc_head_bwd_kernel(const HcShape s, const HcWeights w, const TokenInputs in,
                                   const float* dgate, const TokenGrads grads) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kTokenThreads) + threadIdx.x;
  if (t >= s.T) return;
  const int M = static_cast<int>(s.M);
  const float* z = in.z + t * M;
  float dm[kMaxM], dscale = 0.0f;
  for (int i = 0; i < M; ++i) {
    const float m = in.rho[t] * z[i];
    const float sigma = sigmoid_of(fmaf(m, w.scale[0], w.base[i]));
    const float g = dgate[t * M + i] * (sigma * (1.0f - sigma));
    dscale = fmaf(g, m, dscale);
    dm[i] = g * w.scale[0];
    grads.dlogit[t * M + i] = g;
    grads.gates[t * M + i] = sigma + s.hc_eps;
  }
  grads.dscale[t] = dscale;
  products_bwd(z, in.rho[t], M, dm, s.M * s.D, grads.dz + t * M, grads.two_dq + t);
}

/// dx_i = fma(2 dq, u_i, fma(w_i, g, dx_i)); from zero the innermost term is w_i * g.
__global__ void add_stream_grads_kernel(const HcShape s, const float* x, const float* g,
                                        const TokenGrads grads, bool from_zero, float* dx) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= s.T * s.M * s.D) return;
  const int64_t d = i % s.D, row = i / s.D, t = row / s.M;
  const float gd = g[t * s.D + d], w = grads.gates[row];
  const float acc = from_zero ? w * gd : fmaf(w, gd, dx[i]);
  dx[i] = fmaf(grads.two_dq[t], x[i], acc);
}

/// Chains over tokens: thread n < N of d(base), then the groups of d(scale).
__global__ void hc_small_grads_kernel(int64_t T, int64_t N, int64_t groups, const TokenGrads token,
                                      const HcGrads grads) {
  const int64_t i = threadIdx.x;
  if (i >= N + groups) return;
  float* const to = i < N ? grads.base + i : grads.scale + (i - N);
  float acc = *to;
  for (int64_t t = 0; t < T; ++t) {
    acc = acc + (i < N ? token.dlogit[t * N + i] : token.dscale[t * groups + (i - N)]);
  }
  *to = acc;
}

/// z and rho of all tokens, in scratch memory.
class Products {
 public:
  Products(Device& device, const HcShape& s, int64_t N, const HcWeights& w, const float* x)
      : z_(device, s.T * N), rho_(device, s.T) {
    const int64_t K = s.M * s.D, num_splits = (K + kHcSplit - 1) / kHcSplit;
    FATHOM_LAUNCH(device, hc_products_kernel, static_cast<unsigned>(s.T), kThreads,
                  static_cast<size_t>(N * num_splits) * sizeof(float), K, N, num_splits, w.fn, x,
                  z_.get());
    FATHOM_LAUNCH(device, hc_rho_kernel, blocks_for(s.T, kHalves), kThreads, 0, s.T, K, s.norm_eps,
                  x, rho_.get());
  }
  TokenInputs inputs() const { return {z_.get(), rho_.get()}; }

 private:
  Scratch<float> z_, rho_;
};

/// TokenGrads in scratch memory, and what follows once they are there.
class TokenGradScratch {
 public:
  TokenGradScratch(Device& device, const HcShape& s, int64_t N, int64_t groups)
      : device_(device),
        s_(s),
        N_(N),
        groups_(groups),
        memory_(device, s.T * (2 * N + groups + s.M + 1)) {}

  TokenGrads pointers() const {
    float* p = memory_.get();
    const int64_t T = s_.T;
    return {p, p + T * N_, p + 2 * T * N_, p + T * (2 * N_ + groups_),
            p + T * (2 * N_ + groups_ + s_.M)};
  }

  void finish(const HcWeights& w, const float* x, const float* g, bool from_zero, float* dx,
              const HcGrads& grads) const {
    const TokenGrads token = pointers();
    const int64_t K = s_.M * s_.D;
    FATHOM_LAUNCH(device_, add_stream_grads_kernel, blocks_for(s_.T * K, kThreads), kThreads, 0, s_,
                  x, g, token, from_zero, dx);
    linear_bwd_input(device_, {.dy = token.dz,
                               .dy_stride = N_,
                               .w_panels = w.fn,
                               .dx = dx,
                               .dx_stride = K,
                               .T = s_.T,
                               .N = N_,
                               .K = K,
                               .accumulate = true});
    linear_bwd_weight(device_, {.x = x,
                                .x_stride = K,
                                .dy = token.dz,
                                .dy_stride = N_,
                                .dw_panels = grads.fn,
                                .T = s_.T,
                                .N = N_,
                                .K = K});
    FATHOM_LAUNCH(device_, hc_small_grads_kernel, 1, 128, 0, s_.T, N_, groups_, token, grads);
  }

 private:
  Device& device_;
  HcShape s_;
  int64_t N_, groups_;
  Scratch<float> memory_;
};

unsigned element_blocks(int64_t n) { return blocks_for(n, kThreads); }

}  // namespace

void hc_pre_fwd(Device& device, const HcShape& s, const HcWeights& w, const float* x, float* y,
                float* post, float* comb) {
  const Products products(device, s, (2 + s.M) * s.M, w, x);
  const Scratch<float> pre(device, s.T * s.M);
  FATHOM_LAUNCH(device, hc_gates_kernel, blocks_for(s.T, kTokenThreads), kTokenThreads, 0, s, w,
                products.inputs(), pre.get(), post, comb);
  FATHOM_LAUNCH(device, mix_streams_kernel, element_blocks(s.T * s.D), kThreads, 0, s.T * s.D, s.M,
                s.D, x, pre.get(), s.M, y);
}

void hc_post_fwd(Device& device, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, float* out) {
  FATHOM_LAUNCH(device, hc_post_fwd_kernel, element_blocks(s.T * s.M * s.D), kThreads, 0, s, x, f,
                post, comb, out);
}

void hc_post_bwd(Device& device, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, const float* dout, float* df, float* dpost,
                 float* dcomb, float* dx) {
  FATHOM_LAUNCH(device, hc_post_dots_kernel, blocks_for(s.T * (s.M + 1) * s.M, kHalves), kThreads,
                0, s, x, f, dout, dpost, dcomb);
  FATHOM_LAUNCH(device, mix_streams_kernel, element_blocks(s.T * s.D), kThreads, 0, s.T * s.D, s.M,
                s.D, dout, post, s.M, df);
  FATHOM_LAUNCH(device, hc_post_dx_kernel, element_blocks(s.T * s.M * s.D), kThreads, 0, s, comb,
                dout, dx);
}

void hc_pre_bwd(Device& device, const HcShape& s, const HcWeights& w, const float* x,
                const float* dy, const float* dpost, const float* dcomb, float* dx,
                const HcGrads& grads) {
  const int64_t N = (2 + s.M) * s.M;
  const Products products(device, s, N, w, x);
  const TokenGradScratch scratch(device, s, N, 3);
  const Scratch<float> dpre(device, s.T * s.M), steps(device, s.T * steps_size(s));
  FATHOM_LAUNCH(device, stream_dots_kernel, blocks_for(s.T * s.M, kHalves), kThreads, 0, s.T * s.M,
                s.M, s.D, x, dy, dpre.get());
  FATHOM_LAUNCH(device, hc_pre_bwd_kernel, blocks_for(s.T, kTokenThreads), kTokenThreads, 0, s, w,
                products.inputs(), dpre.get(), dpost, dcomb, steps.get(), scratch.pointers());
  scratch.finish(w, x, dy, /*from_zero=*/false, dx, grads);
}

void hc_head_fwd(Device& device, const HcShape& s, const HcWeights& w, const float* x, float* h) {
  const Products products(device, s, s.M, w, x);
  const Scratch<float> gates(device, s.T * s.M);
  FATHOM_LAUNCH(device, hc_head_gates_kernel, blocks_for(s.T * s.M, kTokenThreads), kTokenThreads,
                0, s, w, products.inputs(), gates.get());
  FATHOM_LAUNCH(device, mix_streams_kernel, element_blocks(s.T * s.D), kThreads, 0, s.T * s.D, s.M,
                s.D, x, gates.get(), s.M, h);
}

void hc_head_bwd(Device& device, const HcShape& s, const HcWeights& w, const float* x,
                 const float* dh, float* dx, const HcGrads& grads) {
  const Products products(device, s, s.M, w, x);
  const TokenGradScratch scratch(device, s, s.M, 1);
  const Scratch<float> dgate(device, s.T * s.M);
  FATHOM_LAUNCH(device, stream_dots_kernel, blocks_for(s.T * s.M, kHalves), kThreads, 0, s.T * s.M,
                s.M, s.D, x, dh, dgate.get());
  FATHOM_LAUNCH(device, hc_head_bwd_kernel, blocks_for(s.T, kTokenThreads), kTokenThreads, 0, s, w,
                products.inputs(), dgate.get(), scratch.pointers());
  scratch.finish(w, x, dh, /*from_zero=*/true, dx, grads);
}

}  // namespace fathom::cuda
