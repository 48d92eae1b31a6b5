// Legend: T tokens, D hidden, E experts, K slots per token, R = T*K routed rows, I intermediate.
#include "fathom/model/moe.h"

#include <cstring>

#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/router/router.h"
#include "fathom/kernels/swiglu/swiglu.h"
#include "fathom/model/projection.h"

namespace fathom {
namespace {

/// Indices recorded by rollout for every row of the batch, or empty when there are none.
std::vector<int32_t> replayed_routes(const Batch& batch, const BatchPlan& plan, int64_t layer,
                                     int64_t K) {
  bool any = false;
  for (const Segment& s : batch.segments) any |= s.replay_in != nullptr;
  if (layer < 0 || !any) return {};
  std::vector<int32_t> routes(static_cast<size_t>(plan.T * K));
  for (int64_t t = 0; t < plan.T; ++t) {
    const size_t i = static_cast<size_t>(t);
    const Segment& segment = batch.segments[static_cast<size_t>(plan.segment_of[i])];
    const int32_t* row = segment.replay_in == nullptr
                             ? nullptr
                             : segment.replay_in->route_row(plan.positions[i], layer);
    if (row == nullptr) return {};  // a record covers a whole sample or none of it
    std::memcpy(routes.data() + t * K, row, static_cast<size_t>(K) * sizeof(int32_t));
  }
  return routes;
}

void choose_experts(const ExecContext& ctx, const ModelConfig& c, const MoeWeights& w,
                    const Batch& batch, const BatchPlan& plan, int64_t layer, MoeActivations* a) {
  const int64_t T = plan.T, K = c.num_experts_per_tok, E = c.n_routed_experts;
  const std::vector<int32_t> replay =
      w.tid2eid ? std::vector<int32_t>() : replayed_routes(batch, plan, layer, K);
  a->topk_idx.resize(static_cast<size_t>(T * K));
  a->topk_weights = Tensor::empty({T, K});
  router_fwd(ctx, {.logits = a->router_logits.f32(),
                   .bias = w.bias ? w.bias->data() : nullptr,
                   .tid2eid = w.tid2eid ? w.tid2eid->compute.i32() : nullptr,
                   .token_ids = batch.token_ids.data(),
                   .replay_idx = replay.empty() ? nullptr : replay.data(),
                   .T = T,
                   .E = E,
                   .K = K,
                   .scaling = static_cast<float>(c.routed_scaling_factor),
                   .topk_idx = a->topk_idx.data(),
                   .topk_weights = a->topk_weights.f32()});
  for (int64_t t = 0; layer >= 0 && t < T; ++t) {
    const size_t i = static_cast<size_t>(t);
    ReplayRecord* record = batch.segments[static_cast<size_t>(plan.segment_of[i])].replay_out;
    if (record == nullptr) continue;
    std::memcpy(record->route_row(plan.positions[i], layer), a->topk_idx.data() + t * K,
                static_cast<size_t>(K) * sizeof(int32_t));
  }
}

/// Rows sorted by expert; inside an expert by (token, slot).
void sort_rows(int64_t T, int64_t K, int64_t E, MoeActivations* a) {
  a->row_begin.assign(static_cast<size_t>(E) + 1, 0);
  for (int32_t e : a->topk_idx) ++a->row_begin[static_cast<size_t>(e) + 1];
  for (size_t e = 0; e < static_cast<size_t>(E); ++e) a->row_begin[e + 1] += a->row_begin[e];
  std::vector<int64_t> next(a->row_begin.begin(), a->row_begin.end() - 1);
  a->slot_row.resize(static_cast<size_t>(T * K));
  for (size_t i = 0; i < a->slot_row.size(); ++i) {
    a->slot_row[i] = static_cast<int32_t>(next[static_cast<size_t>(a->topk_idx[i])]++);
  }
}

std::vector<const float*> expert_panels(const MoeWeights& w, Parameter ExpertWeights::*which) {
  std::vector<const float*> panels;
  for (const ExpertWeights& e : w.experts) panels.push_back((e.*which).data());
  return panels;
}

std::vector<float*> expert_grads(MoeWeights& w, Parameter ExpertWeights::*which) {
  std::vector<float*> grads;
  for (ExpertWeights& e : w.experts) grads.push_back((e.*which).grad_or_null());
  return grads;
}

float shared_limit(const ModelConfig& c) {
  return c.clamp_shared_expert ? static_cast<float>(c.swiglu_limit) : 0.0f;
}

GroupedLinear grouped(const MoeActivations& a, int64_t E, int64_t N, int64_t K) {
  return {.num_groups = E, .row_begin = a.row_begin.data(), .N = N, .K = K};
}

/// The rows are needed for products with experts alone: quantised once for all of them.
void run_routed_experts(const ExecContext& ctx, const ModelConfig& c, const MoeWeights& w,
                        MoeActivations* a) {
  const int64_t D = c.hidden_size, I = c.moe_intermediate_size, E = c.n_routed_experts;
  const int64_t R = a->routed_x.dim(0);
  const auto w1 = expert_panels(w, &ExpertWeights::w1), w3 = expert_panels(w, &ExpertWeights::w3);
  const auto w2 = expert_panels(w, &ExpertWeights::w2);
  const ExpertWeights& any = w.experts.front();  // all have the same formats
  const Rounding& rounding = w.rounding;
  a->routed = {Tensor::empty({R, I}), Tensor::empty({R, I}), Tensor::empty({R, I})};
  a->routed_out = Tensor::empty({R, D});
  a->routed_x = operand(ctx, any.w1, a->routed_x);
  grouped_linear_fwd(ctx, grouped(*a, E, I, D), a->routed_x.f32(), w1.data(), a->routed.gate.f32(),
                     /*num_parts=*/1, sum_block(any.w1));
  grouped_linear_fwd(ctx, grouped(*a, E, I, D), a->routed_x.f32(), w3.data(), a->routed.up.f32(),
                     /*num_parts=*/1, sum_block(any.w3));
  rounding.activation(ctx, a->routed.gate);
  rounding.activation(ctx, a->routed.up);
  swiglu_fwd(ctx, R, I, static_cast<float>(c.swiglu_limit), a->routed.gate.f32(),
             a->routed.up.f32(), a->routed.hidden.f32());
  a->routed.hidden = operand(ctx, any.w2, rounding.activation(ctx, a->routed.hidden));
  grouped_linear_fwd(ctx, grouped(*a, E, D, I), a->routed.hidden.f32(), w2.data(),
                     a->routed_out.f32(), row_parallel_parts(any.w2), sum_block(any.w2));
  rounding.activation(ctx, a->routed_out);
}

Tensor run_shared_expert(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                         const ExpertWeights& w, const Tensor& x, ExpertActivations* a) {
  const int64_t T = x.dim(0), I = c.moe_intermediate_size;
  a->gate = rounding.activation(ctx, project(ctx, w.w1, x));
  a->up = rounding.activation(ctx, project(ctx, w.w3, x));
  a->hidden = Tensor::empty({T, I});
  swiglu_fwd(ctx, T, I, shared_limit(c), a->gate.f32(), a->up.f32(), a->hidden.f32());
  rounding.activation(ctx, a->hidden);
  return rounding.activation(ctx, project(ctx, w.w2, a->hidden, row_parallel_parts(w.w2)));
}

}  // namespace

Tensor moe_forward(const ExecContext& ctx, const ModelConfig& c, const MoeWeights& w,
                   const Batch& batch, const BatchPlan& plan, int64_t layer, const Tensor& x,
                   MoeActivations* acts) {
  const int64_t T = plan.T, D = c.hidden_size, K = c.num_experts_per_tok, E = c.n_routed_experts;
  acts->router_logits = project(ctx, w.gate, x);
  choose_experts(ctx, c, w, batch, plan, layer, acts);
  sort_rows(T, K, E, acts);
  acts->routed_x = Tensor::empty({T * K, D});
  ctx.threads->parallel_for(T, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * K; i < end * K; ++i) {
      std::memcpy(acts->routed_x.f32() + acts->slot_row[static_cast<size_t>(i)] * D,
                  x.f32() + i / K * D, static_cast<size_t>(D) * sizeof(float));
    }
  });
  run_routed_experts(ctx, c, w, acts);
  const Tensor shared = run_shared_expert(ctx, c, w.rounding, w.shared, x, &acts->shared);
  Tensor out = Tensor::empty({T, D});
  moe_combine_fwd(ctx, T, K, D, acts->routed_out.f32(), acts->slot_row.data(),
                  acts->topk_weights.f32(), shared.f32(), out.f32());
  return w.rounding.activation(ctx, out);
}

Tensor moe_backward(const ExecContext& ctx, const ModelConfig& c, MoeWeights& w, const Tensor& x,
                    const MoeActivations& a, const Tensor& dout) {
  const int64_t T = x.dim(0), D = c.hidden_size, I = c.moe_intermediate_size;
  const int64_t K = c.num_experts_per_tok, E = c.n_routed_experts, R = T * K;

  // Routed experts.
  Tensor drows = Tensor::empty({R, D}), dweights = Tensor::empty({T, K});
  moe_combine_bwd(ctx, T, K, D, a.routed_out.f32(), a.slot_row.data(), a.topk_weights.f32(),
                  dout.f32(), drows.f32(), dweights.f32());
  const auto w1 = expert_panels(w, &ExpertWeights::w1), w3 = expert_panels(w, &ExpertWeights::w3);
  const auto w2 = expert_panels(w, &ExpertWeights::w2);
  const auto dw1 = expert_grads(w, &ExpertWeights::w1), dw3 = expert_grads(w, &ExpertWeights::w3);
  const auto dw2 = expert_grads(w, &ExpertWeights::w2);
  Tensor dhidden = Tensor::empty({R, I}), dgate = Tensor::empty({R, I}),
         dup = Tensor::empty({R, I});
  grouped_linear_bwd_input(ctx, grouped(a, E, D, I), drows.f32(), w2.data(), dhidden.f32(), false);
  grouped_linear_bwd_weight(ctx, grouped(a, E, D, I), a.routed.hidden.f32(), drows.f32(),
                            dw2.data());
  swiglu_bwd(ctx, R, I, static_cast<float>(c.swiglu_limit), a.routed.gate.f32(), a.routed.up.f32(),
             dhidden.f32(), dgate.f32(), dup.f32());
  Tensor drouted_x = drows;  // its gradient is used up: the memory serves again
  grouped_linear_bwd_input(ctx, grouped(a, E, I, D), dgate.f32(), w1.data(), drouted_x.f32(),
                           false);
  grouped_linear_bwd_input(ctx, grouped(a, E, I, D), dup.f32(), w3.data(), drouted_x.f32(), true);
  grouped_linear_bwd_weight(ctx, grouped(a, E, I, D), a.routed_x.f32(), dgate.f32(), dw1.data());
  grouped_linear_bwd_weight(ctx, grouped(a, E, I, D), a.routed_x.f32(), dup.f32(), dw3.data());

  // Back at the token: slots upwards, then the shared expert, then the router.
  Tensor dx = Tensor::empty({T, D});
  const std::vector<float> ones(static_cast<size_t>(R), 1.0f);
  moe_combine_fwd(ctx, T, K, D, drouted_x.f32(), a.slot_row.data(), ones.data(), nullptr, dx.f32());

  Tensor shared_dhidden = Tensor::empty({T, I}), shared_dgate = Tensor::empty({T, I});
  Tensor shared_dup = Tensor::empty({T, I});
  project_backward(ctx, w.shared.w2, a.shared.hidden, dout, &shared_dhidden, /*accumulate=*/false);
  swiglu_bwd(ctx, T, I, shared_limit(c), a.shared.gate.f32(), a.shared.up.f32(),
             shared_dhidden.f32(), shared_dgate.f32(), shared_dup.f32());
  project_backward(ctx, w.shared.w1, x, shared_dgate, &dx, /*accumulate=*/true);
  project_backward(ctx, w.shared.w3, x, shared_dup, &dx, /*accumulate=*/true);

  Tensor dlogits = Tensor::empty({T, E});
  router_bwd(ctx, {.logits = a.router_logits.f32(),
                   .topk_idx = a.topk_idx.data(),
                   .dtopk_weights = dweights.f32(),
                   .T = T,
                   .E = E,
                   .K = K,
                   .scaling = static_cast<float>(c.routed_scaling_factor),
                   .dlogits = dlogits.f32()});
  project_backward(ctx, w.gate, x, dlogits, &dx, /*accumulate=*/true);
  return dx;
}

}  // namespace fathom
