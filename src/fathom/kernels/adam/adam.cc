#include "fathom/kernels/adam/adam.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/kernels/adam/adam_cpu.h"
#include "fathom/kernels/adam/adam_cuda.h"

namespace fathom {
namespace {

constexpr int64_t kNormBlock = 4096;

double squared_norm(const ExecContext& ctx, const NormTensor& t) {
  const int64_t num_blocks = (t.n + kNormBlock - 1) / kNormBlock;
  const int64_t cols = t.layout != nullptr ? t.layout->cols : 1;
  std::vector<double> blocks(static_cast<size_t>(num_blocks));
  ctx.threads->parallel_for(num_blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double sum = 0.0;
      int64_t row = b * kNormBlock / cols, col = b * kNormBlock % cols;
      for (int64_t i = b * kNormBlock; i < std::min(t.n, (b + 1) * kNormBlock); ++i) {
        const double x =
            static_cast<double>(t.values[t.layout != nullptr ? t.layout->index(row, col) : i]);
        sum += x * x;
        if (++col == cols) {
          col = 0;
          ++row;
        }
      }
      blocks[static_cast<size_t>(b)] = sum;
    }
  });
  double total = 0.0;
  for (double block : blocks) total += block;
  return total;
}

}  // namespace

std::vector<double> squared_norms(const ExecContext& ctx, const std::vector<NormTensor>& tensors) {
  FATHOM_DEVICE_DISPATCH(ctx, squared_norms, tensors);
  std::vector<double> norms;
  for (const NormTensor& t : tensors) norms.push_back(squared_norm(ctx, t));
  return norms;
}

void adam_update(const ExecContext& ctx, const AdamStep& s, int64_t n, const float* grad, float* w,
                 float* m, float* v) {
  FATHOM_ASSERT(s.bias_correction1 > 0 && s.bias_correction2 > 0,
                "the bias corrections of a first or later step are positive, got ",
                s.bias_correction1, " and ", s.bias_correction2);
  FATHOM_DEVICE_DISPATCH(ctx, adam_update, s, n, grad, w, m, v);
  ctx.threads->parallel_for(n, 16384, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, adam_update_elements, s, grad, w, m, v, begin, end);
  });
}

}  // namespace fathom
