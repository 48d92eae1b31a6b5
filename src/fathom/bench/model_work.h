// How much a forward, a training step or a decode step has to compute and to read: what measured
// times are compared with.
#pragma once

#include <cstdint>

#include "fathom/model/weights.h"

namespace fathom {

struct WorkAmount {
  double flops = 0.0;         // a multiply-add counts 2; no recomputation
  double weight_bytes = 0.0;  // read at least once
  double state_bytes = 0.0;   // of cached states, read at least once
};

/// Forward of sequences of `length` tokens each from their beginning, log-probs of every token.
/// MTP is not counted.
/// @param bytes_per_weight as the mode stores them. Experts that no token can reach are not read.
WorkAmount forward_work(const Weights& weights, int64_t num_sequences, int64_t length,
                        double bytes_per_weight);
/// The same with its backward: two more products of each kind.
WorkAmount train_work(const Weights& weights, int64_t num_sequences, int64_t length,
                      double bytes_per_weight);
/// One token each of `batch` sequences of `context` tokens.
WorkAmount decode_work(const Weights& weights, int64_t batch, int64_t context,
                       double bytes_per_weight);

}  // namespace fathom
