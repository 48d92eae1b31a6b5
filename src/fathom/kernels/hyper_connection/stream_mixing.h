// Sums over the streams of one token: rows of D mixed with per-token weights. Part of
// hyper_connection_cpu.cc.
#pragma once

#include "fathom/kernels/hyper_connection/hyper_connection_cpu.h"
#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

/// The number of streams: a constant, so that small loops unroll, or (kM = 0) known at run time.
template <int kM>
struct Streams {
  static constexpr int kMax = kM;
  explicit Streams(const HcShape&) {}
  constexpr operator int() const { return kM; }
};
template <>
struct Streams<0> {
  static constexpr int kMax = kHcMaxStreams;
  int count;
  explicit Streams(const HcShape& s) : count(static_cast<int>(s.M)) {}
  operator int() const { return count; }
};

/// y = sum over i upwards of weight[i * weight_stride] * x_i (x_i = x + i * D).
template <class S>
inline void mix_streams(S M, const float* x, const float* weight, int64_t weight_stride, int64_t D,
                        float* y) {
  F16 a[S::kMax];
  for (int i = 0; i < M; ++i) a[i] = set1(weight[i * weight_stride]);
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    F16 acc = mul(a[0], load(x + d));
    for (int i = 1; i < M; ++i) acc = fma(a[i], load(x + i * D + d), acc);
    store(y + d, acc);
  }
  if (d < D) {
    F16 acc = mul(a[0], load_first(x + d, D - d));
    for (int i = 1; i < M; ++i) acc = fma(a[i], load_first(x + i * D + d, D - d), acc);
    store_first(y + d, acc, D - d);
  }
}

/// dots[i * stride] = dot(x_i, g) in row_ops order, one pass over g.
template <class S>
inline void dot_streams(S M, const float* x, const float* g, int64_t D, float* dots,
                        int64_t stride) {
  F16 acc[S::kMax];
  for (int i = 0; i < M; ++i) acc[i] = zero();
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    const F16 b = load(g + d);
    for (int i = 0; i < M; ++i) acc[i] = fma(load(x + i * D + d), b, acc[i]);
  }
  if (d < D) {
    const F16 b = load_first(g + d, D - d);
    for (int i = 0; i < M; ++i) acc[i] = fma(load_first(x + i * D + d, D - d), b, acc[i]);
  }
  for (int i = 0; i < M; ++i) dots[i * stride] = reduce_add(acc[i]);
}

/// out_k = post_k * f + sum over j upwards of comb[j,k] * x_j.
template <class S>
inline void mix_post(S M, const float* x, const float* f, const float* post, const float* comb,
                     int64_t D, float* out) {
  for (int64_t d = 0; d < D; d += kLanes) {
    const int64_t left = D - d;
    F16 in[S::kMax];
    for (int j = 0; j < M; ++j) {
      in[j] = left >= kLanes ? load(x + j * D + d) : load_first(x + j * D + d, left);
    }
    const F16 fd = left >= kLanes ? load(f + d) : load_first(f + d, left);
    for (int k = 0; k < M; ++k) {
      F16 acc = mul(set1(post[k]), fd);
      for (int j = 0; j < M; ++j) acc = fma(set1(comb[j * M + k]), in[j], acc);
      if (left >= kLanes) {
        store(out + k * D + d, acc);
      } else {
        store_first(out + k * D + d, acc, left);
      }
    }
  }
}

/// dx_i = fma(2 dq, u_i, fma(w_i, g, dx_i)); with kFromZero the innermost term is w_i * g.
template <bool kFromZero, class S>
inline void add_stream_grads(S M, const float* x, const float* g, const float* weight, float two_dq,
                             int64_t D, float* dx) {
  const F16 b = set1(two_dq);
  for (int i = 0; i < M; ++i) {
    const F16 a = set1(weight[i]);
    const float* xi = x + i * D;
    float* dxi = dx + i * D;
    for (int64_t d = 0; d < D; d += kLanes) {
      const int64_t left = D - d;
      if (left >= kLanes) {
        const F16 gd = load(g + d);
        const F16 acc = kFromZero ? mul(a, gd) : fma(a, gd, load(dxi + d));
        store(dxi + d, fma(b, load(xi + d), acc));
      } else {
        const F16 gd = load_first(g + d, left);
        const F16 acc = kFromZero ? mul(a, gd) : fma(a, gd, load_first(dxi + d, left));
        store_first(dxi + d, fma(b, load_first(xi + d, left), acc), left);
      }
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
