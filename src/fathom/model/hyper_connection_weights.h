// From the parameters hc_*_{fn,base,scale} to what kernels/hyper_connection takes.
#pragma once

#include "fathom/kernels/hyper_connection/hyper_connection.h"
#include "fathom/model/weights.h"

namespace fathom {

inline HcShape hc_shape(const ModelConfig& c, int64_t num_tokens) {
  return {.T = num_tokens,
          .M = c.hc_mult,
          .D = c.hidden_size,
          .sinkhorn_iters = static_cast<int>(c.hc_sinkhorn_iters),
          .norm_eps = static_cast<float>(c.rms_norm_eps),
          .hc_eps = static_cast<float>(c.hc_eps)};
}

inline HcWeights hc_weights(const HyperConnectionWeights& w) {
  return {w.fn.data(), w.base.data(), w.scale.data()};
}

/// The gradient buffers of one hyper-connection; for frozen parameters, memory that is thrown away.
class HcGradBuffers {
 public:
  HcGradBuffers(const ExecContext& ctx, HyperConnectionWeights& w)
      : fn_(buffer(ctx, w.fn)), base_(buffer(ctx, w.base)), scale_(buffer(ctx, w.scale)) {}
  HcGrads pointers() const { return {fn_.f32(), base_.f32(), scale_.f32()}; }

 private:
  static Tensor buffer(const ExecContext& ctx, const Parameter& p) {
    return p.grad.defined() ? p.grad : Tensor::zeros(ctx, p.master.shape());
  }
  Tensor fn_, base_, scale_;
};

}  // namespace fathom
