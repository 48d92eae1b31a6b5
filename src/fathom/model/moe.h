// One mixture-of-experts sublayer: router, routed experts, shared expert.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/choice_log.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

// T tokens, D hidden, K slots per token, R = T*K routed rows sorted by expert, I intermediate.
struct ExpertActivations {
  Tensor gate, up, hidden;  // [rows, I] w1 x, w3 x, clamped SwiGLU
};

struct MoeActivations {
  Tensor router_logits;      // [T, E]
  Tensor topk_idx;           // [T, K] int32
  Tensor topk_weights;       // [T, K]
  Tensor slot_row;           // [T, K] int32: routed row of each (token, slot)
  Tensor row_begin;          // [E + 1] int64: rows of each expert, in (token, slot) order
  Tensor routed_x;           // [R, D]
  ExpertActivations routed;  // R rows
  Tensor routed_out;         // [R, D] unweighted
  ExpertActivations shared;  // T rows
};

/// @param id its route_layer is for replay records; -1: no replay (MTP). @param x [T, D]. @return
/// [T, D].
Tensor moe_forward(const ExecContext& ctx, const ModelConfig& config, const MoeWeights& w,
                   const Batch& batch, const BatchPlan& plan, const LayerId& id, const Tensor& x,
                   MoeActivations* acts);

/// Weight gradients are added to. @return dx [T, D].
Tensor moe_backward(const ExecContext& ctx, const ModelConfig& config, MoeWeights& w,
                    const Tensor& x, const MoeActivations& acts, const Tensor& dout);

}  // namespace fathom
