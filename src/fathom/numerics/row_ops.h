// Sums and dot products of a row in the one order that the product uses everywhere on CPU:
// lane i of 16 takes elements i, i+16, i+32, ... upwards (with fma for products); the lanes are
// then added by the fixed tree of reduce_add. Missing elements of the last group count as +0.
#pragma once

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

/// Σ_i x_i · y_i over n elements.
inline float dot(const float* x, const float* y, int64_t n) {
  F16 acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = fma(load(x + i), load(y + i), acc);
  if (i < n) acc = fma(load_first(x + i, n - i), load_first(y + i, n - i), acc);
  return reduce_add(acc);
}

/// Σ_i x_i over n elements.
inline float row_sum(const float* x, int64_t n) {
  F16 acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = add(acc, load(x + i));
  if (i < n) acc = add(acc, load_first(x + i, n - i));
  return reduce_add(acc);
}

/// max_i x_i over n >= 1 elements.
inline float row_max(const float* x, int64_t n) {
  F16 best = set1(x[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = max(load(x + i), best);
  float result = reduce_max(best);
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

/// y_i = fma(a, x_i, y_i): one term of a chain over the caller's loop, vectorised over outputs.
inline void axpy(float a, const float* x, float* y, int64_t n) {
  const F16 scale = set1(a);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, fma(scale, load(x + i), load(y + i)));
  if (i < n) {
    const F16 result = fma(scale, load_first(x + i, n - i), load_first(y + i, n - i));
    store_first(y + i, result, n - i);
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
