#include "fathom/model/projection.h"

#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/rms_norm/rms_norm.h"

namespace fathom {

Tensor project(const ExecContext& ctx, const Parameter& w, const Tensor& x, int num_parts) {
  const int64_t N = w.panels.rows, K = w.panels.cols, T = x.numel() / K;
  Tensor y = Tensor::empty({T, N});
  linear_fwd(ctx, {.x = x.f32(),
                   .x_stride = K,
                   .w_panels = w.data(),
                   .y = y.f32(),
                   .y_stride = N,
                   .T = T,
                   .N = N,
                   .K = K,
                   .num_parts = num_parts});
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
    linear_bwd_weight(ctx, {.x = x.f32(),
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
  Tensor y = Tensor::empty(x.shape());
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
  Tensor dx = Tensor::empty(x.shape());
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
