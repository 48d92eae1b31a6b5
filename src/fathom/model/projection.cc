#include "fathom/model/projection.h"

#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/quant/entry_format.h"  // kActivationFp8Block
#include "fathom/kernels/quant/quant.h"
#include "fathom/kernels/rms_norm/rms_norm.h"

namespace fathom {

Tensor operand(const ExecContext& ctx, const Parameter& w, const Tensor& x) {
  if (w.operand_format() != OperandFormat::kFp8Blocks) return x;
  const int64_t K = w.panels.cols;
  Tensor quantised = Tensor::empty(ctx, x.shape());
  simulate_fp8_rows(ctx, {.x = x.f32(),
                          .x_stride = K,
                          .out = quantised.f32(),
                          .out_stride = K,
                          .num_rows = x.numel() / K,
                          .n = K,
                          .block = kActivationFp8Block});
  return quantised;
}

int64_t sum_block(const Parameter& w) {
  return w.operand_format() == OperandFormat::kFp8Blocks ? kActivationFp8Block : 0;
}

int row_parallel_parts(const Parameter& w) {
  const int64_t block = sum_block(w), K = w.global_shape[1];
  const int64_t parts = block == 0 ? num_row_parallel_parts(K) : num_row_parallel_parts(K, block);
  return static_cast<int>(parts * w.panels.cols / K);
}

Tensor project(const ExecContext& ctx, const Parameter& w, const Tensor& x, int num_parts) {
  const int64_t N = w.panels.rows, K = w.panels.cols, T = x.numel() / K;
  Tensor y = Tensor::empty(ctx, {T, N});
  linear_fwd(ctx, {.x = operand(ctx, w, x).f32(),
                   .x_stride = K,
                   .w_panels = w.data(),
                   .y = y.f32(),
                   .y_stride = N,
                   .T = T,
                   .N = N,
                   .K = K,
                   .num_parts = num_parts,
                   .k_block = sum_block(w)});
  return y;
}

void project_backward(const ExecContext& ctx, Parameter& w, const Tensor& x, const Tensor& dy,
                      Tensor* dx, bool accumulate) {
  const int64_t N = w.panels.rows, K = w.panels.cols, T = x.numel() / K;
  if (dx != nullptr) {
    linear_bwd_input(ctx, {.dy = dy.f32(),
                           .dy_stride = N,
                           .w_panels = w.data(),
                           .dx = dx->f32(),
                           .dx_stride = K,
                           .T = T,
                           .N = N,
                           .K = K,
                           .accumulate = accumulate});
  }
  if (w.grad.defined()) {
    linear_bwd_weight(ctx, {.x = operand(ctx, w, x).f32(),
                            .x_stride = K,
                            .dy = dy.f32(),
                            .dy_stride = N,
                            .dw_panels = w.grad.f32(),
                            .T = T,
                            .N = N,
                            .K = K});
  }
}

Tensor normed(const ExecContext& ctx, const Tensor& x, const Parameter* w, double eps) {
  Tensor y = Tensor::empty(ctx, x.shape());
  const int64_t N = x.shape().back();
  rms_norm_fwd(ctx, {.x = x.f32(),
                     .x_stride = N,
                     .w = w == nullptr ? nullptr : w->data(),
                     .y = y.f32(),
                     .y_stride = N,
                     .num_rows = N == 0 ? 0 : x.numel() / N,
                     .N = N,
                     .eps = static_cast<float>(eps)});
  return y;
}

Tensor normed_backward(const ExecContext& ctx, const Tensor& x, Parameter* w, double eps,
                       const Tensor& dy) {
  Tensor dx = Tensor::empty(ctx, x.shape());
  const int64_t N = x.shape().back();
  rms_norm_bwd(ctx, {.x = x.f32(),
                     .x_stride = N,
                     .w = w == nullptr ? nullptr : w->data(),
                     .dy = dy.f32(),
                     .dy_stride = N,
                     .dx = dx.f32(),
                     .dx_stride = N,
                     .dw = w == nullptr ? nullptr : w->grad_or_null(),
                     .num_rows = N == 0 ? 0 : x.numel() / N,
                     .N = N,
                     .eps = static_cast<float>(eps)});
  return dx;
}

}  // namespace fathom
