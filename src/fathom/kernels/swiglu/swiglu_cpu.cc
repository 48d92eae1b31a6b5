#include "fathom/kernels/swiglu/swiglu_cpu.h"

#include "fathom/numerics/row_ops.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

// min(limit, x) and max(-limit, x) give x when x is NaN: a NaN stays visible.
inline F16 clamp_gate(F16 g, float limit) { return limit > 0 ? min(set1(limit), g) : g; }
inline F16 clamp_up(F16 u, float limit) {
  return limit > 0 ? max(set1(-limit), min(set1(limit), u)) : u;
}

inline F16 activation(F16 g, F16 u, float limit) {
  const F16 gc = clamp_gate(g, limit);
  return mul(mul(gc, sigmoid(gc)), clamp_up(u, limit));
}

struct Gradients {
  F16 dg, du;
};
inline Gradients activation_bwd(F16 g, F16 u, F16 da, float limit) {
  const F16 one = set1(1.0f);
  const F16 gc = clamp_gate(g, limit), uc = clamp_up(u, limit);
  const F16 sigma = sigmoid(gc);
  const F16 slope = mul(sigma, fma(gc, sub(one, sigma), one));
  F16 du = mul(da, mul(gc, sigma));
  F16 dg = mul(mul(da, uc), slope);
  if (limit > 0) {
    const F16 bound = set1(limit);
    du = select(le(u, bound), select(le(set1(-limit), u), du, zero()), zero());
    dg = select(le(g, bound), dg, zero());
  }
  return {dg, du};
}

}  // namespace

void swiglu_fwd_elements(float limit, const float* g, const float* u, float* a, int64_t begin,
                         int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    store(a + i, activation(load(g + i), load(u + i), limit));
  }
  if (i < end) {
    const int64_t n = end - i;
    store_first(a + i, activation(load_first(g + i, n), load_first(u + i, n), limit), n);
  }
}

void swiglu_bwd_elements(float limit, const float* g, const float* u, const float* da, float* dg,
                         float* du, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const Gradients d = activation_bwd(load(g + i), load(u + i), load(da + i), limit);
    store(dg + i, d.dg);
    store(du + i, d.du);
  }
  if (i < end) {
    const int64_t n = end - i;
    const Gradients d =
        activation_bwd(load_first(g + i, n), load_first(u + i, n), load_first(da + i, n), limit);
    store_first(dg + i, d.dg, n);
    store_first(du + i, d.du, n);
  }
}

void moe_combine_fwd_tokens(const MoeCombine& c, const float* shared, float* out, int64_t begin,
                            int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int32_t* slots = c.slot_row + t * c.K;
    const float* w = c.weights == nullptr ? nullptr : c.weights + t * c.K;
    for (int64_t d = 0; d < c.D; d += kLanes) {
      const int64_t n = c.D - d;
      F16 acc = zero();
      for (int64_t j = 0; j < c.K; ++j) {
        const float* row = c.rows + slots[j] * c.D + d;
        acc = fma(set1(w == nullptr ? 1.0f : w[j]), n >= kLanes ? load(row) : load_first(row, n),
                  acc);
      }
      if (shared != nullptr) {
        const float* row = shared + t * c.D + d;
        acc = add(acc, n >= kLanes ? load(row) : load_first(row, n));
      }
      if (n >= kLanes) {
        store(out + t * c.D + d, acc);
      } else {
        store_first(out + t * c.D + d, acc, n);
      }
    }
  }
}

void moe_combine_bwd_tokens(const MoeCombine& c, const float* dout, float* drows, float* dweights,
                            int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* g = dout + t * c.D;
    for (int64_t j = 0; j < c.K; ++j) {
      const int64_t at = c.slot_row[t * c.K + j] * c.D;
      const F16 w = set1(c.weights[t * c.K + j]);
      dweights[t * c.K + j] = dot(c.rows + at, g, c.D);
      for (int64_t d = 0; d < c.D; d += kLanes) {
        const int64_t n = c.D - d;
        if (n >= kLanes) {
          store(drows + at + d, mul(w, load(g + d)));
        } else {
          store_first(drows + at + d, mul(w, load_first(g + d, n)), n);
        }
      }
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
