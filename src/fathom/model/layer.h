// One block: hyper-connection, attention, hyper-connection, mixture of experts.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/choice_log.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// streams [rows, M, D] of this rank (Layout::stream_rows) -> likewise.
Tensor layer_forward(const ExecContext& ctx, const ModelConfig& config, const LayerWeights& w,
                     const Batch& batch, const BatchPlan& plan, const LayerId& id,
                     const Tensor& streams);

/// Only keeps the window rows of a ratio-0 block in the states.
void layer_window(const ExecContext& ctx, const ModelConfig& config, const LayerWeights& w,
                  const Batch& batch, const BatchPlan& plan, const LayerId& id,
                  const Tensor& streams);

/// Recomputes the block from the streams that entered it (stateless batches), then goes backward.
/// @param dstreams gradient of the block's output. @return gradient of its input.
Tensor layer_backward(const ExecContext& ctx, const ModelConfig& config, LayerWeights& w,
                      const Batch& batch, const BatchPlan& plan, const LayerId& id,
                      const Tensor& streams, const Tensor& dstreams);

}  // namespace fathom
