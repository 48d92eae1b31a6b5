// What is to be planned.
#pragma once

#include <cstdint>
#include <string>

#include "fathom/model/config.h"
#include "fathom/parallel/shard_rules.h"
#include "fathom/plan/hardware.h"

namespace fathom {

struct BatchSizes {
  int64_t samples = 256;           // of an optimizer step, over all ranks
  int64_t sequence_tokens = 5120;  // of a sample, prompt and response
  int64_t response_tokens = 4096;  // of these, predicted by the loss
  int64_t samples_per_micro_batch = 1;
};

struct EngineSizes {
  bool shares_layout = true;   // runs on the trainer's layout and weights
  int tp = 1, dp = 1, ep = 1;  // of an engine with a layout of its own
  bool dp_attention = false;
  int64_t max_running_requests = 64;
  int64_t page_size = 0;  // tokens; 0: fits the model
};

struct PlanRequest {
  std::string model_name;
  ModelConfig config;
  ShardLayout layout;
  bool sequence_parallel = false;
  Machine machine;
  int ranks_per_node = 1;
  BatchSizes batch;
  EngineSizes engine;
  bool recompute = true;           // whole layers in backward; false: all activations are kept
  bool optimizer_on_host = false;  // masters and moments in the node's memory
  int gradient_bytes = 4;          // of an element: fp32, or 2: bf16
  int moment_bytes = 4;            // of an element of each moment
  bool freezes_gate = true;        // the router's weights do not move
  bool trains_mtp = false;         // in sft

  int num_ranks() const { return layout.mesh.size(); }
  /// Of one data-parallel rank and step.
  int num_micro_batches() const;
  int64_t micro_batch_tokens() const;  // [T] of all ranks of tp and cp together
  int64_t micro_batch_rows() const;    // [R] predicted tokens of these
  /// Bytes of an activation: 2 on GPUs but for fp32; 4 on the CPU, which holds every format so.
  int64_t activation_bytes() const;
};

}  // namespace fathom
