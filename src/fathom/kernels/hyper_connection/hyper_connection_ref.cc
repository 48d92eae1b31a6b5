#include "fathom/kernels/hyper_connection/hyper_connection_ref.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

size_t at(int64_t i) { return static_cast<size_t>(i); }

/// m = fn * u / rms(u), N rows.
std::vector<double> mixes(const HcShape& s, const std::vector<double>& fn, const double* u,
                          int64_t N) {
  const int64_t K = s.M * s.D;
  double squares = 0;
  for (int64_t k = 0; k < K; ++k) squares += u[k] * u[k];
  const double rho = 1 / std::sqrt(squares / static_cast<double>(K) + s.norm_eps);
  std::vector<double> m(at(N));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) m[at(n)] += fn[at(n * K + k)] * u[k];
    m[at(n)] *= rho;
  }
  return m;
}

std::vector<double> sinkhorn(std::vector<double> X, int64_t M, int iters, double eps) {
  for (int64_t j = 0; j < M; ++j) {
    const double best = *std::max_element(X.begin() + j * M, X.begin() + (j + 1) * M);
    double sum = 0;
    for (int64_t k = 0; k < M; ++k) {
      X[at(j * M + k)] = std::exp(X[at(j * M + k)] - best);
      sum += X[at(j * M + k)];
    }
    for (int64_t k = 0; k < M; ++k) X[at(j * M + k)] = X[at(j * M + k)] / sum + eps;
  }
  for (int i = 0; i < iters; ++i) {
    for (int64_t j = 0; i > 0 && j < M; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < M; ++k) sum += X[at(j * M + k)];
      for (int64_t k = 0; k < M; ++k) X[at(j * M + k)] /= sum + eps;
    }
    for (int64_t k = 0; k < M; ++k) {
      double sum = 0;
      for (int64_t j = 0; j < M; ++j) sum += X[at(j * M + k)];
      for (int64_t j = 0; j < M; ++j) X[at(j * M + k)] /= sum + eps;
    }
  }
  return X;
}

}  // namespace

HcPreRef hc_pre_ref(const HcShape& s, const HcRefWeights& w, const std::vector<double>& x) {
  const int64_t M = s.M, D = s.D;
  HcPreRef out;
  out.y.assign(at(s.T * D), 0);
  for (int64_t t = 0; t < s.T; ++t) {
    const double* u = x.data() + t * M * D;
    const std::vector<double> m = mixes(s, w.fn, u, (2 + M) * M);
    for (int64_t i = 0; i < M; ++i) {
      const double pre = sigmoid(m[at(i)] * w.scale[0] + w.base[at(i)]) + s.hc_eps;
      for (int64_t d = 0; d < D; ++d) out.y[at(t * D + d)] += pre * u[i * D + d];
      out.post.push_back(2 * sigmoid(m[at(M + i)] * w.scale[1] + w.base[at(M + i)]));
    }
    std::vector<double> logits(at(M * M));
    for (int64_t n = 0; n < M * M; ++n) {
      logits[at(n)] = m[at(2 * M + n)] * w.scale[2] + w.base[at(2 * M + n)];
    }
    const std::vector<double> comb = sinkhorn(logits, M, s.sinkhorn_iters, s.hc_eps);
    out.comb.insert(out.comb.end(), comb.begin(), comb.end());
  }
  return out;
}

std::vector<double> hc_post_ref(const HcShape& s, const std::vector<double>& x,
                                const std::vector<double>& f, const std::vector<double>& post,
                                const std::vector<double>& comb) {
  const int64_t M = s.M, D = s.D;
  std::vector<double> out(at(s.T * M * D));
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t k = 0; k < M; ++k) {
      for (int64_t d = 0; d < D; ++d) {
        double sum = post[at(t * M + k)] * f[at(t * D + d)];
        for (int64_t j = 0; j < M; ++j) {
          sum += comb[at((t * M + j) * M + k)] * x[at((t * M + j) * D + d)];
        }
        out[at((t * M + k) * D + d)] = sum;
      }
    }
  }
  return out;
}

std::vector<double> hc_head_ref(const HcShape& s, const HcRefWeights& w,
                                const std::vector<double>& x) {
  const int64_t M = s.M, D = s.D;
  std::vector<double> h(at(s.T * D));
  for (int64_t t = 0; t < s.T; ++t) {
    const double* u = x.data() + t * M * D;
    const std::vector<double> m = mixes(s, w.fn, u, M);
    for (int64_t i = 0; i < M; ++i) {
      const double weight = sigmoid(m[at(i)] * w.scale[0] + w.base[at(i)]) + s.hc_eps;
      for (int64_t d = 0; d < D; ++d) h[at(t * D + d)] += weight * u[i * D + d];
    }
  }
  return h;
}

}  // namespace fathom
