#include "fathom/kernels/router/router_cpu.h"

#include "fathom/numerics/row_ops.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

inline F16 score(F16 z) { return sqrt(softplus(z)); }

/// The K largest of score + bias, larger first, then the lower id. Returns false on a NaN.
inline bool choose(const float* scores, const float* bias, int64_t E, int64_t K, int32_t* idx,
                   float* best) {
  int64_t filled = 0;
  for (int64_t e = 0; e < E; ++e) {
    const float value = bias == nullptr ? scores[e] : scores[e] + bias[e];
    if (value != value) return false;
    // Experts come in ascending order, so an equal one never moves ahead of an earlier one.
    if (filled == K && !(value > best[K - 1])) continue;
    int64_t at = filled < K ? filled++ : K - 1;
    for (; at > 0 && value > best[at - 1]; --at) {
      best[at] = best[at - 1];
      idx[at] = idx[at - 1];
    }
    best[at] = value;
    idx[at] = static_cast<int32_t>(e);
  }
  return true;
}

}  // namespace

int64_t router_fwd_tokens(const RouterFwd& p, int64_t begin, int64_t end, float* scores) {
  for (int64_t t = begin; t < end; ++t) {
    const float* z = p.logits + t * p.E;
    int64_t e = 0;
    for (; e + kLanes <= p.E; e += kLanes) store(scores + e, score(load(z + e)));
    if (e < p.E) store_first(scores + e, score(load_first(z + e, p.E - e)), p.E - e);

    int32_t* idx = p.topk_idx + t * p.K;
    float* weights = p.topk_weights + t * p.K;
    const int32_t* given = p.replay_idx != nullptr ? p.replay_idx + t * p.K
                           : p.tid2eid != nullptr
                               ? p.tid2eid + static_cast<int64_t>(p.token_ids[t]) * p.K
                               : nullptr;
    if (given != nullptr) {
      // Scores of the experts that are not taken matter to nobody, but a NaN is a fault upstream.
      const float sum = row_sum(scores, p.E);
      if (sum != sum) return t;
      for (int64_t j = 0; j < p.K; ++j) idx[j] = given[j];
    } else if (!choose(scores, p.bias, p.E, p.K, idx, weights)) {
      return t;
    }

    float total = 0;
    for (int64_t j = 0; j < p.K; ++j) total += scores[idx[j]];
    total += 1e-20f;
    if (!(total <= 3.402823466e+38f)) return t;
    for (int64_t j = 0; j < p.K; ++j) weights[j] = scores[idx[j]] / total * p.scaling;
  }
  return -1;
}

void router_bwd_tokens(const RouterBwd& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* z = p.logits + t * p.E;
    const int32_t* idx = p.topk_idx + t * p.K;
    const float* dw = p.dtopk_weights + t * p.K;
    float* dz = p.dlogits + t * p.E;
    for (int64_t e = 0; e < p.E; ++e) dz[e] = 0;

    float total = 0, weighted = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j0 = 0; j0 < p.K; j0 += kLanes) {
        const int64_t count = p.K - j0 < kLanes ? p.K - j0 : kLanes;
        float chosen[kLanes] = {}, s[kLanes], slope[kLanes];
        for (int64_t j = 0; j < count; ++j) chosen[j] = z[idx[j0 + j]];
        const F16 zv = load(chosen);
        const F16 sv = score(zv);
        store(s, sv);
        if (pass == 0) {
          for (int64_t j = 0; j < count; ++j) {
            total += s[j];
            weighted += dw[j0 + j] * s[j];
          }
          continue;
        }
        // sigma(z) / (2 s); its limit e^{z/2} / 2 where softplus nears its underflow.
        const F16 half = set1(0.5f);
        const F16 tail = mul(half, exp(mul(half, zv)));
        const F16 body = div(mul(half, sigmoid(zv)), sv);
        store(slope, select(lt(zv, set1(-40.0f)), tail, body));
        const float sum = total + 1e-20f;
        for (int64_t j = 0; j < count; ++j) {
          const float ds = p.scaling / sum * (dw[j0 + j] - weighted / sum);
          dz[idx[j0 + j]] += ds * slope[j];
        }
      }
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
