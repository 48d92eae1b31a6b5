// Runs micro-batches through the stages of a model, by the lists of pipeline_schedule.h.
//
// Every stage is given every batch: ids, segments and replay records. Between stages travel the
// streams [rows, M, D] of the rank's own rows, and back their gradients. One stage computes as if
// there were no pipeline, with nothing copied, so there is one path for any number of stages.
#pragma once

#include <functional>

#include "fathom/base/exec_context.h"
#include "fathom/dist/group.h"
#include "fathom/model/forward.h"

namespace fathom {

/// What a step is made of. The functions are called with micro_batch = 0, 1, 2, ... in order.
struct PipelineWork {
  int num_micro_batches = 0;  // the same on all stages
  /// On every stage; kept until the stage has done with it.
  std::function<const Batch&(int micro_batch)> batch;
  /// On the last stage, behind its layers. @param streams of the rank's rows.
  /// @return their gradient; in run_forward() it is not looked at.
  std::function<Tensor(int micro_batch, const Tensor& streams)> head;
};

/// Forward and backward of all micro-batches, 1F1B. Gradients are added to the parameters' buffers
/// in the order of the micro-batches on every stage, so a stage has the bits that one rank would
/// have in these parameters.
/// @param stages the ranks of the pipeline in order; w has this rank's stage.
void run_training(const ExecContext& ctx, Weights& w, const dist::Group& stages,
                  const PipelineWork& work);

/// Forward alone.
void run_forward(const ExecContext& ctx, const Weights& w, const dist::Group& stages,
                 const PipelineWork& work);

}  // namespace fathom
