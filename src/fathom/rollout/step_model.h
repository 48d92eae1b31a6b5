// The model as the engine sees it: computes a batch and advances its states, and guesses tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/sequence_state.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// A guess in the making behind a state.
struct DraftSequence {
  SequenceState* state = nullptr;
  int32_t token_id = 0;  // what to continue: the state's next token, then each draft in turn
  int64_t depth = 0;     // calls of draft() so far; the model counts
  Tensor streams;        // the model's, from call to call
  Tensor window;         // the model's, to undo what draft() did to the state
};

class StepModel {
 public:
  virtual ~StepModel() = default;

  /// States of the segments advance; their checkpoints are filled.
  /// @return [rows, V] fp32; undefined tensor when rows is empty.
  virtual Tensor step(const Batch& batch, const std::vector<int64_t>& rows) = 0;

  /// The form of the states that it fills.
  virtual Precision precision() const { return Precision::kFp32; }

  /// Whether it can guess. States need a layout with MTP for it.
  virtual bool can_draft() const { return false; }

  /// What may come behind each sequence's token_id, cheaply. @return logits [sequences, V].
  virtual Tensor draft(std::span<DraftSequence* const> sequences);

  /// Undoes what draft() did to the states.
  virtual void end_draft(std::span<DraftSequence> sequences);
};

/// The trainer's forward on the trainer's tensors; drafts with the first MTP module by recursion.
class WeightsModel : public StepModel {
 public:
  /// @param weights must outlive the model; read at every step.
  WeightsModel(const ExecContext& ctx, const Weights& weights) : ctx_(ctx), weights_(weights) {}

  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override;
  Precision precision() const override { return weights_.precision(); }
  bool can_draft() const override { return !weights_.mtp.empty(); }
  Tensor draft(std::span<DraftSequence* const> sequences) override;
  void end_draft(std::span<DraftSequence> sequences) override;

 private:
  void keep_streams(const Batch& batch, const Tensor& streams);
  ExecContext ctx_;
  const Weights& weights_;
};

}  // namespace fathom
