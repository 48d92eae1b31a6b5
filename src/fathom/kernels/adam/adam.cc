#include "fathom/kernels/adam/adam.h"

#include "fathom/base/error.h"
#include "fathom/kernels/adam/adam_cpu.h"

namespace fathom {

void adam_update(const ExecContext& ctx, const AdamStep& s, int64_t n, const float* grad, float* w,
                 float* m, float* v) {
  FATHOM_ASSERT(s.bias_correction1 > 0 && s.bias_correction2 > 0,
                "the bias corrections of a first or later step are positive, got ",
                s.bias_correction1, " and ", s.bias_correction2);
  ctx.threads->parallel_for(n, 16384, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, adam_update_elements, s, grad, w, m, v, begin, end);
  });
}

}  // namespace fathom
