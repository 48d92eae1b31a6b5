#include "fathom/model/layer.h"

#include <functional>

#include "fathom/kernels/hyper_connection/hyper_connection.h"
#include "fathom/model/attention.h"
#include "fathom/model/hyper_connection_weights.h"
#include "fathom/model/moe.h"
#include "fathom/model/projection.h"

namespace fathom {
namespace {

/// What hc_pre makes of the streams, kept until hc_post.
struct Mixed {
  Tensor y;           // [T, D]
  Tensor post, comb;  // [T, M], [T, M, M]
};

Mixed mix(const ExecContext& ctx, const HcShape& shape, const Rounding& rounding,
          const HyperConnectionWeights& w, const Tensor& streams) {
  Mixed m{Tensor::empty(ctx, {shape.T, shape.D}), Tensor::empty(ctx, {shape.T, shape.M}),
          Tensor::empty(ctx, {shape.T, shape.M, shape.M})};
  hc_pre_fwd(ctx, shape, hc_weights(w), streams.f32(), m.y.f32(), m.post.f32(), m.comb.f32());
  rounding.activation(ctx, m.y);
  return m;
}

Tensor sublayer_input(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                      const Parameter& norm, const Mixed& m) {
  return rounding.activation(ctx, normed(ctx, m.y, &norm, c.rms_norm_eps));
}

Tensor unmix(const ExecContext& ctx, const HcShape& shape, const Rounding& rounding,
             const Tensor& streams, const Tensor& f, const Mixed& m) {
  Tensor out = Tensor::empty(ctx, streams.shape());
  hc_post_fwd(ctx, shape, streams.f32(), f.f32(), m.post.f32(), m.comb.f32(), out.f32());
  return rounding.activation(ctx, out);
}

/// Backward of x -> unmix(x, f(normed(mix(x)))). @param sublayer_backward df [T, D] -> d(normed)
/// [T, D].
Tensor sublayer_gradient(const ExecContext& ctx, const HcShape& shape, double eps,
                         HyperConnectionWeights& w, Parameter& norm, const Tensor& streams,
                         const Mixed& m, const Tensor& f, const Tensor& dout,
                         const std::function<Tensor(const Tensor&)>& sublayer_backward) {
  Tensor df = Tensor::empty(ctx, {shape.T, shape.D}), dpost = Tensor::empty(ctx, m.post.shape());
  Tensor dcomb = Tensor::empty(ctx, m.comb.shape()), dx = Tensor::empty(ctx, streams.shape());
  hc_post_bwd(ctx, shape, streams.f32(), f.f32(), m.post.f32(), m.comb.f32(), dout.f32(), df.f32(),
              dpost.f32(), dcomb.f32(), dx.f32());
  const Tensor dnormed = sublayer_backward(df);
  const Tensor dy = normed_backward(ctx, m.y, &norm, eps, dnormed);
  const HcGradBuffers grads(ctx, w);
  hc_pre_bwd(ctx, shape, hc_weights(w), streams.f32(), dy.f32(), dpost.f32(), dcomb.f32(), dx.f32(),
             grads.pointers());
  return dx;
}

}  // namespace

Tensor layer_forward(const ExecContext& ctx, const ModelConfig& c, const LayerWeights& w,
                     const Batch& batch, const BatchPlan& plan, const LayerId& id,
                     const Tensor& streams) {
  const HcShape shape = hc_shape(c, streams.dim(0));
  AttentionActivations attention;
  const Mixed for_attention = mix(ctx, shape, w.rounding, w.hc_attn, streams);
  const Tensor a =
      attention_forward(ctx, c, w.attn, batch, plan, id,
                        sublayer_input(ctx, c, w.rounding, w.attn_norm, for_attention), &attention);
  const Tensor middle = unmix(ctx, shape, w.rounding, streams, a, for_attention);

  MoeActivations moe;
  const Mixed for_moe = mix(ctx, shape, w.rounding, w.hc_ffn, middle);
  const Tensor f = moe_forward(ctx, c, w.ffn, batch, plan, id,
                               sublayer_input(ctx, c, w.rounding, w.ffn_norm, for_moe), &moe);
  return unmix(ctx, shape, w.rounding, middle, f, for_moe);
}

void layer_window(const ExecContext& ctx, const ModelConfig& c, const LayerWeights& w,
                  const Batch& batch, const BatchPlan& plan, const LayerId& id,
                  const Tensor& streams) {
  const Mixed for_attention = mix(ctx, hc_shape(c, streams.dim(0)), w.rounding, w.hc_attn, streams);
  attention_window(ctx, c, w.attn, batch, plan, id.state_layer,
                   sublayer_input(ctx, c, w.rounding, w.attn_norm, for_attention));
}

Tensor layer_backward(const ExecContext& ctx, const ModelConfig& c, LayerWeights& w,
                      const Batch& batch, const BatchPlan& plan, const LayerId& id,
                      const Tensor& streams, const Tensor& dstreams) {
  const HcShape shape = hc_shape(c, streams.dim(0));
  const double eps = c.rms_norm_eps;
  AttentionActivations attention;
  const Mixed for_attention = mix(ctx, shape, w.rounding, w.hc_attn, streams);
  const Tensor attention_x = sublayer_input(ctx, c, w.rounding, w.attn_norm, for_attention);
  const Tensor a = attention_forward(ctx, c, w.attn, batch, plan, id, attention_x, &attention);
  const Tensor middle = unmix(ctx, shape, w.rounding, streams, a, for_attention);
  MoeActivations moe;
  const Mixed for_moe = mix(ctx, shape, w.rounding, w.hc_ffn, middle);
  const Tensor moe_x = sublayer_input(ctx, c, w.rounding, w.ffn_norm, for_moe);
  const Tensor f = moe_forward(ctx, c, w.ffn, batch, plan, id, moe_x, &moe);

  const Tensor dmiddle = sublayer_gradient(
      ctx, shape, eps, w.hc_ffn, w.ffn_norm, middle, for_moe, f, dstreams,
      [&](const Tensor& df) { return moe_backward(ctx, c, w.ffn, plan, moe_x, moe, df); });
  return sublayer_gradient(
      ctx, shape, eps, w.hc_attn, w.attn_norm, streams, for_attention, a, dmiddle,
      [&](const Tensor& df) { return attention_backward(ctx, c, w.attn, plan, attention, df); });
}

}  // namespace fathom
