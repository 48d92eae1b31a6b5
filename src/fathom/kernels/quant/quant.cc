#include "fathom/kernels/quant/quant.h"

#include <algorithm>
#include <cmath>

#include "fathom/base/error.h"
#include "fathom/kernels/quant/quant_cpu.h"
#include "fathom/kernels/quant/quant_cuda.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

constexpr int64_t kElementGrain = 16384;
constexpr float kWeightAmaxFloor = 1e-10f;

int64_t row_grain(int64_t n) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, n));
}

}  // namespace

void round_bf16(const ExecContext& ctx, const float* x, int64_t n, float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, round_bf16, x, n, out);
  ctx.threads->parallel_for(n, kElementGrain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, round_bf16_elements, x, out, begin, end);
  });
}

void round_bf16_serial(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = round_to_bf16(x[i]);
}

void simulate_fp8_rows(const ExecContext& ctx, const Fp8Rows& p) {
  FATHOM_ASSERT(p.n >= 0 && p.block >= 1 && p.x_stride >= p.n && p.out_stride >= p.n, "n = ", p.n,
                ", block = ", p.block, ", strides ", p.x_stride, " and ", p.out_stride);
  FATHOM_DEVICE_DISPATCH(ctx, simulate_fp8_rows, p);
  ctx.threads->parallel_for(p.num_rows, row_grain(p.n), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, simulate_fp8_row_range, p, begin, end);
  });
}

void hadamard_rows_bf16(const ExecContext& ctx, int64_t num_rows, int64_t n, float* x) {
  FATHOM_ASSERT(n >= 1 && (n & (n - 1)) == 0, "n = ", n, " is no power of two");
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(n)));
  FATHOM_DEVICE_DISPATCH(ctx, hadamard_rows_bf16, num_rows, n, scale, x);
  ctx.threads->parallel_for(num_rows, row_grain(n), [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, hadamard_row_range, x, n, scale, begin, end);
  });
}

void simulate_fp8_matrix(const ExecContext& ctx, const float* w, const PanelLayout& layout,
                         float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, simulate_fp8_blocks, w, layout.rows, layout.cols, out);
  simulate_fp8_panels(w, layout, out);
}

void simulate_fp8_panels(const float* panels, const PanelLayout& layout, float* out) {
  FATHOM_ASSERT(layout.num_blocks == 1, "num_blocks = ", layout.num_blocks);
  constexpr int64_t kBlockPanels = kFp8BlockSize / kPanelRows;
  const int64_t num_panels = layout.panels_per_block(), K = layout.cols;
  for (int64_t panel = 0; panel < num_panels; panel += kBlockPanels) {
    const int64_t last_panel = std::min(num_panels, panel + kBlockPanels);
    for (int64_t k = 0; k < K; k += kFp8BlockSize) {
      const int64_t count = std::min(kFp8BlockSize, K - k) * kPanelRows;  // of one panel
      float amax = kWeightAmaxFloor;                                      // padding rows are zero
      for (int64_t p = panel; p < last_panel; ++p) {
        const float* w = panels + (p * K + k) * kPanelRows;
        for (int64_t i = 0; i < count; ++i) {
          FATHOM_CHECK(std::isfinite(w[i]), "element [", p * kPanelRows + i % kPanelRows, ", ",
                       k + i / kPanelRows, "] is ", w[i], " and cannot be quantised to FP8");
          amax = std::max(amax, std::fabs(w[i]));
        }
      }
      const float scale = fp8_power_scale(amax);
      for (int64_t p = panel; p < last_panel; ++p) {
        const float* w = panels + (p * K + k) * kPanelRows;
        float* to = out + (p * K + k) * kPanelRows;
        for (int64_t i = 0; i < count; ++i) to[i] = e4m3_to_f32(f32_to_e4m3(w[i] / scale)) * scale;
      }
    }
  }
}

}  // namespace fathom
