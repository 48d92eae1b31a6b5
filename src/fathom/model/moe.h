// One mixture-of-experts sublayer: router, routed experts, shared expert.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/choice_log.h"
#include "fathom/model/expert_exchange.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

// T tokens that this rank routes (Layout::routed_rows), D hidden, K slots per token, R = T*K routed
// rows sorted by expert, Q rows that reach this rank's experts, I intermediate; of one rank Q = R.
struct ExpertActivations {
  Tensor gate, up, hidden;  // [rows, I] w1 x, w3 x, clamped SwiGLU
};

struct MoeActivations {
  Tensor router_logits;  // [T, E]
  Tensor topk_idx;       // [T, K] int32
  Tensor topk_weights;   // [T, K]
  Tensor slot_row;       // [T, K] int32: routed row of each (token, slot)
  Tensor row_begin;      // [E + 1] int64: rows of each expert, in (token, slot) order
  ExpertExchange exchange;
  Tensor routed_x;           // [Q, D]
  ExpertActivations routed;  // Q rows
  Tensor routed_out;         // [R, D] unweighted
  Tensor shared_x;           // [.., D] all rows of the context where tp shares the expert, else T
  ExpertActivations shared;  // likewise
};

/// @param id its route_layer is for replay records; -1: no replay (MTP). @param x of the rank's
/// streams, [rows, D]. @return likewise.
Tensor moe_forward(const ExecContext& ctx, const ModelConfig& config, const MoeWeights& w,
                   const Batch& batch, const BatchPlan& plan, const LayerId& id, const Tensor& x,
                   MoeActivations* acts);

/// Weight gradients are added to. @param dout of the rank's streams. @return dx likewise.
Tensor moe_backward(const ExecContext& ctx, const ModelConfig& config, MoeWeights& w,
                    const BatchPlan& plan, const Tensor& x, const MoeActivations& acts,
                    const Tensor& dout);

}  // namespace fathom
