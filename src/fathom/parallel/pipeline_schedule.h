// What a pipeline stage does in which order, as a list that is executed, simulated and planned
// from.
//
// One micro-batch forward, one backward (1F1B): stage s of P first runs P - 1 - s micro-batches
// forward, then alternates, then runs the rest backward. So it holds at most P - s micro-batches
// between their forward and backward, and every stage runs both directions in the order 0, 1, 2,
// ... Gradients of one parameter are therefore added in micro-batch order under any pipeline.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fathom {

struct PipelineMessage {
  enum class What { kStreams, kGradient };  // of the streams [T, M, D] between two stages
  What what = What::kStreams;
  bool sends = false;  // else it is received
  int stage = 0;       // the other one: streams come from stage - 1, gradients from stage + 1
  int micro_batch = 0;
  bool operator==(const PipelineMessage&) const = default;
};

struct PipelineAction {
  enum class Kind {
    kForward,   // micro_batch through the stage's layers; the last stage's head and loss belong to
                // it
    kBackward,  // the same backwards, where the streams received forward are needed once more
    kExchange,  // `messages`, all under way at once; done when all are
  };
  Kind kind = Kind::kForward;
  int micro_batch = 0;                    // of kForward and kBackward
  std::vector<PipelineMessage> messages;  // of kExchange: one or two, with one neighbour
  bool operator==(const PipelineAction&) const = default;
  std::string text() const;  // "forward 3", "send streams 4 to 2, receive gradient 1 from 2"
};

/// The actions of `stage` in a training step. A send may block until its receiver is there: sends
/// that would wait for each other stand in one exchange.
/// @param num_micro_batches the same on all stages; 0 gives an empty list.
std::vector<PipelineAction> one_forward_one_backward(int num_stages, int stage,
                                                     int num_micro_batches);

/// The actions of `stage` when only log-probs are wanted.
std::vector<PipelineAction> forward_only(int num_stages, int stage, int num_micro_batches);

/// The most micro-batches that are at any time between their forward and their backward.
int max_in_flight(const std::vector<PipelineAction>& actions);

}  // namespace fathom
