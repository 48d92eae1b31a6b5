// One attention sublayer: low-rank Q, shared latent KV, window and compressed keys, grouped output.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/kernels/quant/entry_format.h"  // KeyPages
#include "fathom/model/batch.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/choice_log.h"
#include "fathom/model/weights.h"
#include "fathom/numerics/kernel_array.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

// T tokens (of the context, where ranks share the rows of a batch), D hidden, H this rank's heads, hd head dim, Rq query rank, G this rank's groups, Ro
// output rank, N new entries.
struct CompressorActivations {
  Tensor values, gates;  // [rows behind own entries, coff * width] projections, ape not added
  Tensor pooled;         // [own new entries, width] before the norm
  Tensor entries;        // [N, width] normed and rotated
};

/// Where each segment's entries lie.
struct EntryPages {
  KernelArray<const void*> tables;  // of all segments, one behind another
  KernelArray<KeyPages> pages;      // [S]
};

struct AttentionActivations {
  Tensor x;          // [T, D] the normed input
  Tensor q_low;      // [T, Rq] wq_a x
  Tensor q_normed;   // [T, Rq] also the indexer's input
  Tensor q_raw;      // [T, H, hd] wq_b, before the per-head norm
  Tensor q;          // [T, H, hd] normed and rotated
  Tensor kv_raw;     // [T, hd] wkv x
  Tensor window_kv;  // [window rows, hd] cached rows and new rows, normed and rotated
  Tensor o;          // [T, H, hd] attention output, not rotated back
  Tensor lse;        // [T, H]
  Tensor o_rotated;  // [T, H, hd]
  Tensor z;          // [T, G * Ro]; of all groups where every rank has all of wo_b
  CompressorActivations compressor;
  Tensor picks;      // [T, index_topk] int32, of ratio-4 layers
  Tensor num_picks;  // [T] int32, of ratio-4 layers; others see all that is visible
  EntryPages pages;
};

/// @param x normed input of the rank's streams, [rows, D]. @return likewise.
Tensor attention_forward(const ExecContext& ctx, const ModelConfig& config,
                         const AttentionWeights& w, const Batch& batch, const BatchPlan& plan,
                         const LayerId& id, const Tensor& x, AttentionActivations* acts);

/// Only keeps the batch's window rows in the states. @param x as in attention_forward.
void attention_window(const ExecContext& ctx, const ModelConfig& config, const AttentionWeights& w,
                      const Batch& batch, const BatchPlan& plan, int64_t layer, const Tensor& x);

/// Stateless batches only. Weight gradients are added to. @param dout of the rank's streams.
/// @return dx likewise.
Tensor attention_backward(const ExecContext& ctx, const ModelConfig& config, AttentionWeights& w,
                          const BatchPlan& plan, const AttentionActivations& acts,
                          const Tensor& dout);

}  // namespace fathom
