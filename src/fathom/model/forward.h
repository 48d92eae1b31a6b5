// The model's forward, the same for training, prefill, decode and scoring, and its backward.
//
// Tensors are where the context computes; where they must be on the host, it says so.
// Under a layout (w.layout) all ranks of its groups call the same functions with the same batch,
// rows and targets. Streams are those of the rank's own rows (Layout::stream_rows), for which T
// stands below; hidden rows, logits and log-probs are whole on every rank. Shapes: T packed tokens,
// M = hc_mult streams, D hidden, R selected rows, V vocabulary. fp32. A token's result depends only
// on its own sequence up to it, never on how tokens were batched or cut into segments: bits are
// equal for any such choice, any number of threads and either instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// What the backward needs: the streams that entered each layer. Everything else is recomputed, one
/// layer at a time.
struct Tape {
  std::vector<Tensor> layer_inputs;  // per layer [T, M, D]
};

/// Checks a batch against the model: ids in range, lengths, start positions, states.
/// Errors: UserError that names the segment. Called by embed().
void check_batch(const ModelConfig& config, const Batch& batch);

/// Token embeddings, repeated over the streams: [T, M, D].
Tensor embed(const ExecContext& ctx, const Weights& w, const Batch& batch);

/// All layers. Appends to the segments' states and advances them. With a tape (training) the
/// segments must have no state. @return streams [T, M, D].
Tensor forward_layers(const ExecContext& ctx, const Weights& w, const Batch& batch,
                      const Tensor& streams, Tape* tape = nullptr);

/// hc_head and the final norm for the selected rows (of the batch's T): hidden [R, D].
Tensor collapse(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
                const std::vector<int64_t>& rows);
/// The same where a rank has the streams of all rows.
Tensor collapse(const ExecContext& ctx, const Weights& w, const Tensor& streams,
                const std::vector<int64_t>& rows);

/// hidden [R, D] -> fp32 logits [R, V], in memory of the host.
Tensor logits(const ExecContext& ctx, const Weights& w, const Tensor& hidden);

/// log p(target) at a temperature > 0, without [R, V] in memory (kernels/log_prob).
/// @param entropy [R] on the host, filled when not null. @return [R] in memory of the host.
Tensor log_probs(const ExecContext& ctx, const Weights& w, const Tensor& hidden,
                 const std::vector<int32_t>& targets, float temperature, float* entropy = nullptr);

/// One MTP module (0): draft streams [T, M, D] from the main model's final streams and each row's
/// next token. Row t predicts the token after next_ids[t]. States keep the module's own window.
Tensor mtp(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
           const std::vector<int32_t>& next_ids, Tape* tape = nullptr);
/// Only what mtp() leaves behind in the states: the module's window. Far less work.
void mtp_window(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
                const std::vector<int32_t>& next_ids);
/// The module's own hc_head and norm: hidden [R, D], for the shared head.
Tensor mtp_collapse(const ExecContext& ctx, const Weights& w, const Batch& batch,
                    const Tensor& draft_streams, const std::vector<int64_t>& rows);

// Backward. Weight gradients are added to the parameters' grad buffers (where allocated), each
// element one chain in packed token order, so that cutting a step into micro-batches changes no
// bits.

/// @param dlog_probs [R] and dentropy [R] or null: on the host; lse and entropy are recomputed.
/// @return dhidden [R, D].
Tensor log_probs_backward(const ExecContext& ctx, Weights& w, const Tensor& hidden,
                          const std::vector<int32_t>& targets, float temperature,
                          const float* dlog_probs, const float* dentropy);
/// @return dstreams [T, M, D], zero outside the selected rows.
Tensor collapse_backward(const ExecContext& ctx, Weights& w, const Batch& batch,
                         const Tensor& streams, const std::vector<int64_t>& rows,
                         const Tensor& dhidden);
/// @return gradient of the streams that entered the first layer.
Tensor backward_layers(const ExecContext& ctx, Weights& w, const Batch& batch, const Tape& tape,
                       Tensor dstreams);
void embed_backward(const ExecContext& ctx, Weights& w, const Batch& batch, const Tensor& dstreams);

/// Backward of the MTP loss into mtp.* only: streams, embedding and head are detached.
void mtp_collapse_backward(const ExecContext& ctx, Weights& w, const Batch& batch,
                           const Tensor& draft_streams, const std::vector<int64_t>& rows,
                           const Tensor& dhidden, Tensor* ddraft_streams);
void mtp_backward(const ExecContext& ctx, Weights& w, const Batch& batch, const Tensor& streams,
                  const std::vector<int32_t>& next_ids, const Tape& tape, Tensor ddraft_streams);

}  // namespace fathom
