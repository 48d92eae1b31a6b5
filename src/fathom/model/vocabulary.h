// Embedding and head of a vocabulary that the ranks of tp may share by rows (model/shard.h).
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// Rows of the table for the rank's streams, each `copies` times: [rows, copies, D].
/// @param ids of all T tokens of the batch.
Tensor embed_tokens(const ExecContext& ctx, const Weights& w, const std::vector<int32_t>& ids,
                    int64_t copies);
/// Adds to the table's gradient. @param dstreams of the rank's streams, [rows, copies, D].
void embed_tokens_backward(const ExecContext& ctx, Weights& w, const std::vector<int32_t>& ids,
                           const Tensor& dstreams);

}  // namespace fathom
