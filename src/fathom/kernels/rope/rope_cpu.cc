#include "fathom/kernels/rope/rope_cpu.h"

#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

// Plain loops: the compiler makes vectors of them, and every operation is one IEEE operation per
// element whatever it chooses.

inline void rotate_pairs(float* __restrict x, const float* __restrict cos,
                         const float* __restrict sin, int64_t num_pairs) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    const float x0 = x[2 * i], x1 = x[2 * i + 1];
    x[2 * i] = __builtin_fmaf(x0, cos[i], -(x1 * sin[i]));
    x[2 * i + 1] = __builtin_fmaf(x0, sin[i], x1 * cos[i]);
  }
}

inline void rotate_pairs_back(float* __restrict x, const float* __restrict cos,
                              const float* __restrict sin, int64_t num_pairs) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    const float x0 = x[2 * i], x1 = x[2 * i + 1];
    x[2 * i] = __builtin_fmaf(x0, cos[i], x1 * sin[i]);
    x[2 * i + 1] = __builtin_fmaf(x0, -sin[i], x1 * cos[i]);
  }
}

}  // namespace

void rope_table_rows(const int64_t* positions, const float* frequencies, int64_t num_frequencies,
                     float* cos, float* sin, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float position = static_cast<float>(positions[r]);
    for (int64_t i = 0; i < num_frequencies; ++i) {
      double s, c;
      sin_cos(static_cast<double>(position * frequencies[i]), &s, &c);
      cos[r * num_frequencies + i] = static_cast<float>(c);
      sin[r * num_frequencies + i] = static_cast<float>(s);
    }
  }
}

void rope_apply_rows(const RopeApply& p, int64_t begin, int64_t end) {
  const int64_t num_pairs = p.rope_dim / 2;
  for (int64_t r = begin; r < end; ++r) {
    const float* cos = p.cos + r * num_pairs;
    const float* sin = p.sin + r * num_pairs;
    for (int64_t h = 0; h < p.num_heads; ++h) {
      float* x = p.x + r * p.row_stride + h * p.head_stride + (p.head_dim - p.rope_dim);
      if (p.inverse) {
        rotate_pairs_back(x, cos, sin, num_pairs);
      } else {
        rotate_pairs(x, cos, sin, num_pairs);
      }
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
