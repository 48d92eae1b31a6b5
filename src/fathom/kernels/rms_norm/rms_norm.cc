#include "fathom/kernels/rms_norm/rms_norm.h"

#include <algorithm>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/rms_norm/rms_norm_cpu.h"
#include "fathom/kernels/rms_norm/rms_norm_cuda.h"

namespace fathom {
namespace {

/// Rows per range, so that a range moves about 16 K numbers.
int64_t row_grain(int64_t N) { return std::max<int64_t>(1, 16384 / N); }

}  // namespace

void rms_norm_fwd(const ExecContext& ctx, const RmsNormFwd& p) {
  FATHOM_ASSERT(p.N > 0, "N = ", p.N);
  FATHOM_DEVICE_DISPATCH(ctx, rms_norm_fwd, p);
  ctx.threads->parallel_for(p.num_rows, row_grain(p.N), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, rms_norm_fwd_rows, p, begin, end);
  });
}

void rms_norm_bwd(const ExecContext& ctx, const RmsNormBwd& p) {
  FATHOM_ASSERT(p.N > 0, "N = ", p.N);
  FATHOM_ASSERT(!p.accumulate || p.dx != p.dy, "dx cannot be dy's memory and be added to");
  FATHOM_DEVICE_DISPATCH(ctx, rms_norm_bwd, p);
  std::vector<float> rho(static_cast<size_t>(p.num_rows));
  ctx.threads->parallel_for(p.num_rows, row_grain(p.N), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, rms_norm_rho_rows, p, rho.data(), begin, end);
  });
  // dw before dx: dx may overwrite dy.
  if (p.dw != nullptr) {
    ctx.threads->parallel_for(p.N, 64, [&](int64_t begin, int64_t end) {
      FATHOM_CPU_DISPATCH(ctx, rms_norm_dw_columns, p, rho.data(), begin, end);
    });
  }
  ctx.threads->parallel_for(p.num_rows, row_grain(p.N), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, rms_norm_dx_rows, p, rho.data(), begin, end);
  });
}

}  // namespace fathom
