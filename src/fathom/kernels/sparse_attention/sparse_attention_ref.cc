#include "fathom/kernels/sparse_attention/sparse_attention_ref.h"

#include <algorithm>
#include <cmath>

#include "fathom/kernels/quant/quant_ref.h"
#include "fathom/kernels/sparse_attention/sparse_attention.h"  // kAttentionChunkKeys

namespace fathom {
namespace {

double dot(const double* x, const double* y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

std::vector<double> weights_of(const std::vector<double>& s, double m) {
  std::vector<double> weights;
  for (const double v : s) weights.push_back(std::exp(v - m));
  return weights;
}

/// Rounded against the maximum of their chunk: the window, then 512 compressed keys at a time.
std::vector<double> rounded_weights(const std::vector<double>& s, double m, int64_t num_window) {
  std::vector<double> weights;
  const auto count = static_cast<int64_t>(s.size());
  for (int64_t begin = 0, end = num_window; begin < count;
       begin = end, end += kAttentionChunkKeys) {
    end = std::min(end, count);
    const double of_chunk = *std::max_element(s.begin() + begin, s.begin() + end);
    for (int64_t k = begin; k < end; ++k) {
      const double p = bf16_ref(std::exp(s[static_cast<size_t>(k)] - of_chunk));
      weights.push_back(p * std::exp(of_chunk - m));
    }
  }
  return weights;
}

}  // namespace

SparseAttentionOutRef sparse_attention_ref(const SparseAttentionRef& p) {
  SparseAttentionOutRef out{std::vector<double>(p.q.size()), {}};
  for (size_t t = 0; t < p.seen.size(); ++t) {
    for (int64_t h = 0; h < p.H; ++h) {
      const int64_t at = (static_cast<int64_t>(t) * p.H + h) * p.hd;
      const double sink = p.sink[static_cast<size_t>(h)];
      std::vector<double> s;
      double m = sink;
      for (const int64_t key : p.seen[t]) {
        s.push_back(
            dot(&p.q[static_cast<size_t>(at)], &p.keys[static_cast<size_t>(key * p.hd)], p.hd) *
            p.scale);
        m = std::max(m, s.back());
      }
      double l = std::exp(sink - m);
      for (const double v : s) l += std::exp(v - m);
      const std::vector<double> weights =
          p.num_window.empty() ? weights_of(s, m) : rounded_weights(s, m, p.num_window[t]);
      for (size_t k = 0; k < s.size(); ++k) {
        for (int64_t d = 0; d < p.hd; ++d) {
          out.o[static_cast<size_t>(at + d)] +=
              weights[k] / l * p.keys[static_cast<size_t>(p.seen[t][k] * p.hd + d)];
        }
      }
      out.lse.push_back(m + std::log(l));
    }
  }
  return out;
}

SparseAttentionGradsRef sparse_attention_bwd_ref(const SparseAttentionRef& p,
                                                 const std::vector<double>& dout) {
  const SparseAttentionOutRef out = sparse_attention_ref(p);
  SparseAttentionGradsRef grads{std::vector<double>(p.q.size()), std::vector<double>(p.keys.size()),
                                std::vector<double>(p.sink.size())};
  for (size_t t = 0; t < p.seen.size(); ++t) {
    for (int64_t h = 0; h < p.H; ++h) {
      const size_t item = t * static_cast<size_t>(p.H) + static_cast<size_t>(h);
      const size_t at = item * static_cast<size_t>(p.hd);
      const double delta = dot(&out.o[at], &dout[at], p.hd);
      for (const int64_t key : p.seen[t]) {
        const size_t k = static_cast<size_t>(key * p.hd);
        const double prob = std::exp(dot(&p.q[at], &p.keys[k], p.hd) * p.scale - out.lse[item]);
        const double ds = prob * (dot(&dout[at], &p.keys[k], p.hd) - delta) * p.scale;
        for (size_t d = 0; d < static_cast<size_t>(p.hd); ++d) {
          grads.dq[at + d] += ds * p.keys[k + d];
          grads.dkeys[k + d] += ds * p.q[at + d] + prob * dout[at + d];
        }
      }
      const double sink = p.sink[static_cast<size_t>(h)];
      grads.dsink[static_cast<size_t>(h)] -= delta * std::exp(sink - out.lse[item]);
    }
  }
  return grads;
}

}  // namespace fathom
