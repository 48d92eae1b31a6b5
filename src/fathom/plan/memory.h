// Bytes that one rank takes, by purpose.
//
// On GPUs: compute weights in the mode's formats; fp32 gradients; masters and moments divided over
// the replicas (ZeRO-1 over DP x CP, experts over expert-DP), on the host where that is asked for.
// On a CPU, as the program does it: fp32 masters that the kernels read, a rounded copy in the
// parity modes, fp32 gradients, moments divided. Activations follow layer_backward(), tensor by
// tensor.
//
// Counted is what is alive at the fullest moment. What an allocator keeps beside it is not: with
// the C library's, up to a third of the activations that are in pieces below 32 MiB.
#pragma once

#include <cstdint>

#include "fathom/plan/request.h"
#include "fathom/plan/shard_table.h"

namespace fathom {

struct RankMemory {
  int rank = 0, stage = 0;
  int64_t num_parameters = 0, num_trained = 0;  // elements held, and moved
  // Bytes on the device.
  int64_t process = 0;
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t saved_activations = 0;    // of all micro-batches between forward and backward
  int64_t working_activations = 0;  // the most that one forward or backward takes beside them
  int64_t engine_weights = 0;       // of an engine with a layout of its own
  int64_t states = 0;               // what rollout remembers of max_running_requests sequences
  // Bytes of the node's memory.
  int64_t host_optimizer = 0;

  /// The engine's weights and states are released while it trains.
  int64_t training_bytes() const;
  /// Gradients and activations are released while it rolls out.
  int64_t rollout_bytes() const;
  int64_t peak_bytes() const;
};

/// All but the engine's, which are the same on every rank.
RankMemory rank_memory(const PlanRequest& request, const ShardTable& table, int rank);

struct ActivationBytes {
  int64_t saved = 0;    // of one micro-batch between its forward and its backward
  int64_t working = 0;  // beside it
};

/// Of one pipeline stage. @param layers its main layers
ActivationBytes activation_bytes(const PlanRequest& request, const LayerRange& layers,
                                 bool has_head);

/// Of one rank of the engine, for max_running_requests sequences of sequence_tokens.
int64_t state_bytes(const PlanRequest& request);
/// Of one of its ranks, where it has a layout of its own: the bytes that the trainer computes with.
int64_t engine_weight_bytes(const PlanRequest& request);

}  // namespace fathom
