// Medians of forward, training step and decode step of a model on random weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/base/json.h"
#include "fathom/model/weights.h"

namespace fathom {

enum class BenchMode {
  kForward,  // log-probs of every token
  kTrain,    // forward and backward, without an optimizer's step
  kDecode,   // one token each of a batch of running answers
};

struct BenchOptions {
  BenchMode mode = BenchMode::kForward;
  int64_t tokens = 4096;    // of a sequence; decode: of the context
  int64_t batch = 1;        // sequences
  int64_t repetitions = 5;  // after a warm-up; the median counts
  uint64_t seed = 1;        // of the tokens
  // What the device can do; unset: by its name, where that is known.
  std::optional<double> peak_tflops, peak_gb_per_s;
};

/// Measures, with the weights as they are (random ones will do). Gradients are allocated for
/// kTrain. Result: {"mode", "tokens", "batch", "ms", "tokens_per_s", "tflops", "gb_per_s",
/// "roofline_ms", "share_of_roofline", "memory_gb", "repetitions", "spread"}; roofline fields are
/// null where the device's limits are not known. Decode: ms is of one step.
/// Errors: UserError when the sizes do not fit the model.
Json bench_model(const ExecContext& ctx, Weights* weights, const BenchOptions& options);

/// One line per field, for people.
std::string bench_text(const Json& result);

}  // namespace fathom
