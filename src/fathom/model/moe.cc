// Legend: T tokens that this rank routes, D hidden, E experts, K slots per token, R = T*K routed
// rows, Q rows at this rank's experts, I intermediate (this rank's part of it).
//
// Every token is routed by one rank: with sequence parallelism by the one that has its stream,
// without it the ranks of tp share the tokens and gather the results.
#include "fathom/model/moe.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/router/router.h"
#include "fathom/kernels/rows/rows.h"
#include "fathom/kernels/swiglu/swiglu.h"
#include "fathom/model/projection.h"
#include "fathom/model/row_exchange.h"

namespace fathom {
namespace {

/// The rows of the rank's streams that it routes, and back.
Tensor routed_of_streams(const BatchPlan& plan, const Tensor& streams_rows) {
  return plan.layout->sequence_parallel
             ? streams_rows
             : own_rows_of(plan.layout->tp, plan.context_rows, streams_rows);
}
Tensor streams_of_routed(const BatchPlan& plan, const Tensor& routed) {
  return plan.layout->sequence_parallel
             ? routed
             : gather_rows_of(plan.layout->tp, plan.context_rows, routed);
}
/// The rows of the rank's streams -> all rows of its context.
Tensor context_of_streams(const BatchPlan& plan, const Tensor& streams_rows) {
  return plan.layout->sequence_parallel
             ? gather_rows_of(plan.layout->tp, plan.context_rows, streams_rows)
             : streams_rows;
}
/// Routed rows -> all rows of the context.
Tensor context_of_routed(const BatchPlan& plan, const Tensor& routed) {
  return gather_rows_of(plan.layout->tp, plan.context_rows, routed);
}

/// Indices recorded by rollout for every row that this rank routes, or empty when there are none.
std::vector<int32_t> replayed_routes(const Batch& batch, const BatchPlan& plan, int64_t layer,
                                     int64_t K) {
  bool any = false;
  for (const Segment& s : batch.segments) any |= s.replay_in != nullptr;
  if (layer < 0 || !any) return {};
  const RowRange rows = plan.routed_rows;
  std::vector<int32_t> routes(static_cast<size_t>(rows.count * K));
  for (int64_t t = 0; t < plan.T; ++t) {
    const Segment& segment = batch.segments[static_cast<size_t>(plan.segment_of[t])];
    const int32_t* row = segment.replay_in == nullptr
                             ? nullptr
                             : segment.replay_in->route_row(plan.positions[t], layer);
    if (row == nullptr) return {};  // a record covers a whole sample or none of it
    if (rows.begin <= t && t < rows.end()) {
      std::copy_n(row, K, routes.data() + (t - rows.begin) * K);
    }
  }
  return routes;
}

void choose_experts(const ExecContext& ctx, const ModelConfig& c, const MoeWeights& w,
                    const Batch& batch, const BatchPlan& plan, const LayerId& id,
                    MoeActivations* a) {
  const RowRange rows = plan.routed_rows;
  const int64_t T = rows.count, K = c.num_experts_per_tok, E = c.n_routed_experts;
  const KernelArray<int32_t> replay(
      ctx, w.tid2eid ? std::vector<int32_t>() : replayed_routes(batch, plan, id.route_layer, K));
  a->topk_idx = Tensor::empty(ctx, {T, K}, DType::kI32);
  a->topk_weights = Tensor::empty(ctx, {T, K});
  router_fwd(ctx, {.logits = a->router_logits.f32(),
                   .bias = w.bias ? w.bias->data() : nullptr,
                   .tid2eid = w.tid2eid ? w.tid2eid->compute.i32() : nullptr,
                   .token_ids = plan.token_ids.data() + rows.begin,
                   .replay_idx = replay.size() == 0 ? nullptr : replay.data(),
                   .T = T,
                   .E = E,
                   .K = K,
                   .scaling = static_cast<float>(c.routed_scaling_factor),
                   .topk_idx = a->topk_idx.i32(),
                   .topk_weights = a->topk_weights.f32()});
  if (id.choices != nullptr && id.route_layer >= 0) {
    id.choices->add_routes(id.route_layer, context_of_routed(plan, a->topk_idx));
  }
  a->slot_row = Tensor::empty(ctx, {T, K}, DType::kI32);
  a->row_begin = Tensor::empty(ctx, {E + 1}, DType::kI64);
  sort_by_expert(ctx, T * K, E, a->topk_idx.i32(), a->slot_row.i32(), a->row_begin.i64());
}

/// Where the matrices of all experts lie.
KernelArray<const float*> expert_weights(const ExecContext& ctx, const MoeWeights& w,
                                         Parameter ExpertWeights::*which) {
  std::vector<const float*> pointers;
  for (const ExpertWeights& e : w.experts) pointers.push_back((e.*which).data());
  return {ctx, std::move(pointers)};
}

KernelArray<float*> expert_grads(const ExecContext& ctx, MoeWeights& w,
                                 Parameter ExpertWeights::*which) {
  std::vector<float*> pointers;
  for (ExpertWeights& e : w.experts) pointers.push_back((e.*which).grad_or_null());
  return {ctx, std::move(pointers)};
}

float shared_limit(const ModelConfig& c) {
  return c.clamp_shared_expert ? static_cast<float>(c.swiglu_limit) : 0.0f;
}

GroupedLinear grouped(const MoeActivations& a, int64_t N, int64_t K) {
  return {.num_groups = a.exchange.num_experts(),
          .row_begin = a.exchange.row_begin().i64(),
          .N = N,
          .K = K,
          .num_rows = a.routed_x.dim(0)};
}

/// The rows are needed for products with experts alone: quantised once for all of them.
void run_routed_experts(const ExecContext& ctx, const ModelConfig& c, const MoeWeights& w,
                        MoeActivations* a) {
  const int64_t D = c.hidden_size, Q = a->routed_x.dim(0);
  const auto w1 = expert_weights(ctx, w, &ExpertWeights::w1),
             w3 = expert_weights(ctx, w, &ExpertWeights::w3);
  const auto w2 = expert_weights(ctx, w, &ExpertWeights::w2);
  const ExpertWeights& any = w.experts.front();  // all have the same formats
  const int64_t I = any.w1.panels.rows;
  const Rounding& rounding = w.rounding;
  a->routed = {Tensor::empty(ctx, {Q, I}), Tensor::empty(ctx, {Q, I}), Tensor::empty(ctx, {Q, I})};
  Tensor out = Tensor::empty(ctx, {Q, D});
  a->routed_x = operand(ctx, any.w1, a->routed_x);
  grouped_linear_fwd(ctx, grouped(*a, I, D), a->routed_x.f32(), w1.data(), a->routed.gate.f32(),
                     /*num_parts=*/1, sum_block(any.w1));
  grouped_linear_fwd(ctx, grouped(*a, I, D), a->routed_x.f32(), w3.data(), a->routed.up.f32(),
                     /*num_parts=*/1, sum_block(any.w3));
  rounding.activation(ctx, a->routed.gate);
  rounding.activation(ctx, a->routed.up);
  swiglu_fwd(ctx, Q, I, static_cast<float>(c.swiglu_limit), a->routed.gate.f32(),
             a->routed.up.f32(), a->routed.hidden.f32());
  a->routed.hidden = operand(ctx, any.w2, rounding.activation(ctx, a->routed.hidden));
  grouped_linear_fwd(ctx, grouped(*a, D, I), a->routed.hidden.f32(), w2.data(), out.f32(),
                     row_parallel_parts(any.w2), sum_block(any.w2));
  a->routed_out = rounding.activation(ctx, a->exchange.from_experts(out, dist::SumOrder::kTree));
}

/// @return its rows of the routed tokens.
Tensor run_shared_expert(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                         const ExpertWeights& w, const BatchPlan& plan, const Tensor& x,
                         ExpertActivations* a) {
  const int64_t T = x.dim(0), I = w.w1.panels.rows;
  a->gate = rounding.activation(ctx, project(ctx, w.w1, x));
  a->up = rounding.activation(ctx, project(ctx, w.w3, x));
  a->hidden = Tensor::empty(ctx, {T, I});
  swiglu_fwd(ctx, T, I, shared_limit(c), a->gate.f32(), a->up.f32(), a->hidden.f32());
  rounding.activation(ctx, a->hidden);
  Tensor out = project(ctx, w.w2, a->hidden, row_parallel_parts(w.w2));
  if (w.w2.is_sharded()) {
    out = sum_own_rows_of(plan.layout->tp, plan.context_rows, out, dist::SumOrder::kTree);
  }
  return rounding.activation(ctx, out);
}

}  // namespace

Tensor moe_forward(const ExecContext& ctx, const ModelConfig& c, const MoeWeights& w,
                   const Batch& batch, const BatchPlan& plan, const LayerId& id,
                   const Tensor& streams_x, MoeActivations* acts) {
  const int64_t T = plan.routed_rows.count, D = c.hidden_size, K = c.num_experts_per_tok;
  const Tensor x = routed_of_streams(plan, streams_x);
  acts->router_logits = project(ctx, w.gate, x);
  choose_experts(ctx, c, w, batch, plan, id, acts);
  acts->exchange = ExpertExchange(*plan.layout, acts->row_begin, w.experts.front().w2.is_sharded());
  const Tensor rows = Tensor::empty(ctx, {T * K, D});
  moe_dispatch(ctx, T, K, D, x.f32(), acts->slot_row.i32(), rows.f32());
  acts->routed_x = acts->exchange.to_experts(rows);
  run_routed_experts(ctx, c, w, acts);
  acts->shared_x = w.shared.w2.is_sharded() ? context_of_streams(plan, streams_x) : x;
  const Tensor shared =
      run_shared_expert(ctx, c, w.rounding, w.shared, plan, acts->shared_x, &acts->shared);
  Tensor out = Tensor::empty(ctx, {T, D});
  moe_combine_fwd(ctx, T, K, D, acts->routed_out.f32(), acts->slot_row.i32(),
                  acts->topk_weights.f32(), shared.f32(), out.f32());
  return streams_of_routed(plan, w.rounding.activation(ctx, out));
}

namespace {

/// From d(w2's rows) [Q, D] to d(the experts' input) [Q, D].
Tensor routed_backward(const ExecContext& ctx, const ModelConfig& c, MoeWeights& w,
                       const MoeActivations& a, const Tensor& drows) {
  const int64_t Q = a.routed_x.dim(0), D = c.hidden_size, I = a.routed.hidden.dim(1);
  const auto w1 = expert_weights(ctx, w, &ExpertWeights::w1),
             w3 = expert_weights(ctx, w, &ExpertWeights::w3);
  const auto w2 = expert_weights(ctx, w, &ExpertWeights::w2);
  const auto dw1 = expert_grads(ctx, w, &ExpertWeights::w1),
             dw3 = expert_grads(ctx, w, &ExpertWeights::w3);
  const auto dw2 = expert_grads(ctx, w, &ExpertWeights::w2);
  Tensor dhidden = Tensor::empty(ctx, {Q, I}), dgate = Tensor::empty(ctx, {Q, I}),
         dup = Tensor::empty(ctx, {Q, I});
  grouped_linear_bwd_input(ctx, grouped(a, D, I), drows.f32(), w2.data(), dhidden.f32(), false);
  grouped_linear_bwd_weight(ctx, grouped(a, D, I), a.routed.hidden.f32(), drows.f32(), dw2.data());
  swiglu_bwd(ctx, Q, I, static_cast<float>(c.swiglu_limit), a.routed.gate.f32(), a.routed.up.f32(),
             dhidden.f32(), dgate.f32(), dup.f32());
  Tensor dx = drows;  // its gradient is used up: the memory serves again
  grouped_linear_bwd_input(ctx, grouped(a, I, D), dgate.f32(), w1.data(), dx.f32(), false);
  grouped_linear_bwd_input(ctx, grouped(a, I, D), dup.f32(), w3.data(), dx.f32(), true);
  grouped_linear_bwd_weight(ctx, grouped(a, I, D), a.routed_x.f32(), dgate.f32(), dw1.data());
  grouped_linear_bwd_weight(ctx, grouped(a, I, D), a.routed_x.f32(), dup.f32(), dw3.data());
  return dx;
}

/// Adds the shared expert's part to dx [T, D] of the routed tokens.
void shared_backward(const ExecContext& ctx, const ModelConfig& c, ExpertWeights& w,
                     const BatchPlan& plan, const MoeActivations& a, const Tensor& dout,
                     Tensor* dx) {
  const int64_t T = a.shared_x.dim(0), I = a.shared.hidden.dim(1);
  Tensor dhidden = Tensor::empty(ctx, {T, I}), dgate = Tensor::empty(ctx, {T, I});
  Tensor dup = Tensor::empty(ctx, {T, I});
  project_backward(ctx, w.w2, a.shared.hidden, dout, &dhidden, /*accumulate=*/false);
  swiglu_bwd(ctx, T, I, shared_limit(c), a.shared.gate.f32(), a.shared.up.f32(), dhidden.f32(),
             dgate.f32(), dup.f32());
  if (!w.w2.is_sharded()) {
    project_backward(ctx, w.w1, a.shared_x, dgate, dx, /*accumulate=*/true);
    project_backward(ctx, w.w3, a.shared_x, dup, dx, /*accumulate=*/true);
    return;
  }
  Tensor part = Tensor::empty(ctx, a.shared_x.shape());
  project_backward(ctx, w.w1, a.shared_x, dgate, &part, /*accumulate=*/false);
  project_backward(ctx, w.w3, a.shared_x, dup, &part, /*accumulate=*/true);
  const Tensor sum =
      sum_own_rows_of(plan.layout->tp, plan.context_rows, part, dist::SumOrder::kRankOrder);
  add_to_streams(ctx, dx->dim(0), 1, dx->dim(1), sum.f32(), dx->f32());
}

}  // namespace

Tensor moe_backward(const ExecContext& ctx, const ModelConfig& c, MoeWeights& w,
                    const BatchPlan& plan, const Tensor& streams_x, const MoeActivations& a,
                    const Tensor& streams_dout) {
  const int64_t T = plan.routed_rows.count, D = c.hidden_size, K = c.num_experts_per_tok;
  const int64_t E = c.n_routed_experts, R = T * K;
  const Tensor x = routed_of_streams(plan, streams_x);
  const Tensor dout = routed_of_streams(plan, streams_dout);

  Tensor drows = Tensor::empty(ctx, {R, D}), dweights = Tensor::empty(ctx, {T, K});
  moe_combine_bwd(ctx, T, K, D, a.routed_out.f32(), a.slot_row.i32(), a.topk_weights.f32(),
                  dout.f32(), drows.f32(), dweights.f32());
  const Tensor drouted_x = a.exchange.from_experts(
      routed_backward(ctx, c, w, a, a.exchange.to_experts(drows)), dist::SumOrder::kRankOrder);

  // Back at the token: slots upwards, then the shared expert, then the router.
  Tensor dx = Tensor::empty(ctx, {T, D});
  moe_combine_fwd(ctx, T, K, D, drouted_x.f32(), a.slot_row.i32(), /*weights=*/nullptr,
                  /*shared=*/nullptr, dx.f32());
  shared_backward(ctx, c, w.shared, plan, a,
                  w.shared.w2.is_sharded() ? context_of_streams(plan, streams_dout) : dout, &dx);

  Tensor dlogits = Tensor::empty(ctx, {T, E});
  router_bwd(ctx, {.logits = a.router_logits.f32(),
                   .topk_idx = a.topk_idx.i32(),
                   .dtopk_weights = dweights.f32(),
                   .T = T,
                   .E = E,
                   .K = K,
                   .scaling = static_cast<float>(c.routed_scaling_factor),
                   .dlogits = dlogits.f32()});
  project_backward(ctx, w.gate, x, dlogits, &dx, /*accumulate=*/true);
  return streams_of_routed(plan, dx);
}

}  // namespace fathom
