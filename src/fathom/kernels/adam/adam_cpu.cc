#include "fathom/kernels/adam/adam_cpu.h"

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

struct Element {
  F16 w, m, v;
};

inline Element update(const AdamStep& s, F16 grad, Element e) {
  const F16 g = mul(grad, set1(s.grad_scale));
  e.m = fma(set1(s.beta1), e.m, mul(set1(1.0f - s.beta1), g));
  e.v = fma(set1(s.beta2), e.v, mul(mul(set1(1.0f - s.beta2), g), g));
  const F16 mean = div(e.m, set1(s.bias_correction1));
  const F16 deviation = add(sqrt(div(e.v, set1(s.bias_correction2))), set1(s.eps));
  const F16 step = fma(set1(s.weight_decay), e.w, div(mean, deviation));
  e.w = fnma(set1(s.lr), step, e.w);
  return e;
}

}  // namespace

void adam_update_elements(const AdamStep& s, const float* grad, float* w, float* m, float* v,
                          int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const Element e = update(s, load(grad + i), {load(w + i), load(m + i), load(v + i)});
    store(w + i, e.w);
    store(m + i, e.m);
    store(v + i, e.v);
  }
  if (i < end) {
    const int64_t n = end - i;
    const Element e = update(s, load_first(grad + i, n),
                             {load_first(w + i, n), load_first(m + i, n), load_first(v + i, n)});
    store_first(w + i, e.w, n);
    store_first(m + i, e.m, n);
    store_first(v + i, e.v, n);
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
