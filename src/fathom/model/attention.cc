// Legend: T tokens, S segments, D hidden, H heads and G groups of this rank, hd head dim, Rq query
// rank, Ro output rank.
//
// The ranks of tp have different heads and groups. Everything else (low-rank queries, window keys,
// compressor, indexer) each of them computes for all rows, so what they have of gradients there is
// whole as soon as the heads' parts have been added.
#include "fathom/model/attention.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/compressor/compressor.h"
#include "fathom/kernels/indexer/indexer.h"
#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/quant/entry_codec.h"
#include "fathom/kernels/quant/window_ring.h"
#include "fathom/kernels/rope/rope.h"
#include "fathom/kernels/rows/rows.h"
#include "fathom/kernels/sparse_attention/sparse_attention.h"
#include "fathom/model/projection.h"
#include "fathom/model/row_exchange.h"
#include "fathom/model/sequence_state.h"

namespace fathom {
namespace {

void rotate(const ExecContext& ctx, const RotaryTable& table, float* x, int64_t num_rows,
            int64_t num_heads, int64_t head_dim, int64_t rope_dim, bool inverse) {
  rope_apply(ctx, {.x = x,
                   .row_stride = num_heads * head_dim,
                   .head_stride = head_dim,
                   .num_rows = num_rows,
                   .num_heads = num_heads,
                   .head_dim = head_dim,
                   .rope_dim = rope_dim,
                   .cos = table.cos.f32(),
                   .sin = table.sin.f32(),
                   .inverse = inverse});
}

float attention_scale(const ModelConfig& c) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
}

/// Pools the batch's tokens into `pooled`, segment by segment from its state. A forward that passes
/// a checkpoint stops there to copy the state: wave i holds every segment's i-th stretch.
void pool(const ExecContext& ctx, const CompressorWeights& w, const Batch& batch,
          const RatioPlan& ratio, int64_t layer, bool for_indexer, const CompressorActivations& a,
          const Tensor& pooled) {
  struct Copy {
    std::span<float> to;
    const float* from;
  };
  struct Wave {
    std::vector<CompressorRun> runs;
    std::vector<Copy> copies;  // after the runs
  };
  std::vector<Wave> waves(1);
  const auto state_of = [&](const LayerState& l) {
    return for_indexer ? l.indexer_compressor : l.compressor;
  };
  for (const PoolStretch& stretch : ratio.stretches) {
    const Segment& segment = batch.segments[static_cast<size_t>(stretch.segment)];
    float* state =
        segment.state == nullptr ? nullptr : state_of(segment.state->layer(layer)).data();
    int64_t position = stretch.first_position;
    size_t wave = 0;
    const auto run_to = [&](int64_t end) {
      if (wave == waves.size()) waves.emplace_back();
      waves[wave].runs.push_back(
          {.first_row = stretch.first_row + position - stretch.first_position,
           .first_entry =
               stretch.first_entry + position / w.ratio - stretch.first_position / w.ratio,
           .start_pos = position,
           .num_tokens = end - position,
           .state = state});
      position = end;
    };
    for (const Checkpoint& checkpoint : segment.checkpoints) {
      run_to(checkpoint.num_tokens);
      waves[wave++].copies.push_back(
          {state_of(checkpoint.block->layer(segment.state->layout(), layer)), state});
    }
    run_to(stretch.first_position + stretch.num_tokens);
  }
  for (const Wave& wave : waves) {
    compressor_fwd_runs(ctx,
                        {.v = a.values.f32(),
                         .g = a.gates.f32(),
                         .ape = w.ape.data(),
                         .start_pos = 0,
                         .num_tokens = 0,
                         .ratio = w.ratio,
                         .coff = w.coff,
                         .c = w.width,
                         .state = nullptr,
                         .entries = pooled.f32()},
                        wave.runs);
    for (const Copy& copy : wave.copies) {
      copy_memory(ctx.device, copy.to.data(), copy.from, copy.to.size_bytes());
    }
  }
}

/// Pools the batch's tokens into new entries, normed and rotated, and appends them to the states.
CompressorActivations compress(const ExecContext& ctx, const ModelConfig& c,
                               const Rounding& rounding, const CompressorWeights& w,
                               const Batch& batch, const BatchPlan& plan, const Tensor& x,
                               int64_t layer, bool for_indexer) {
  const RatioPlan& ratio = plan.ratio_plan(w.ratio);
  CompressorActivations a;
  a.values = ratio.token_rows.fetch(ctx, project(ctx, w.wkv, x));
  a.gates = ratio.token_rows.fetch(ctx, project(ctx, w.wgate, x));
  const Tensor pooled = Tensor::empty(ctx, {ratio.num_leads + ratio.num_own(), w.width});
  pool(ctx, w, batch, ratio, layer, for_indexer, a, pooled);
  a.pooled = pooled.rows(ratio.num_leads, pooled.dim(0));
  rounding.activation(ctx, a.pooled);
  const Tensor own = rounding.activation(ctx, normed(ctx, a.pooled, &w.norm, c.rms_norm_eps));
  rotate(ctx, ratio.entry_rope, own.f32(), ratio.num_own(), 1, w.width, c.qk_rope_head_dim,
         /*inverse=*/false);
  rounding.activation(ctx, own);
  if (for_indexer) {
    rounding.indexer(ctx, own, w.width);
  } else {
    rounding.latent(ctx, own, c.qk_rope_head_dim);
  }
  a.entries = ratio.entries.fetch(ctx, own);
  std::vector<EntryRun> runs;
  const EntryFormat* format = nullptr;
  for (int64_t s = 0; s < plan.S; ++s) {
    SequenceState* state = batch.segments[static_cast<size_t>(s)].state;
    if (state == nullptr) continue;
    const int64_t begin = ratio.entry_begin[s], count = ratio.entry_begin[s + 1] - begin;
    format = for_indexer ? &state->append_indexer_keys(layer, begin, count, &runs)
                         : &state->append_entries(layer, begin, count, &runs);
  }
  if (!runs.empty()) encode_entry_runs(ctx, *format, a.entries.f32(), runs);
  return a;
}

/// Where each segment's entries live: its state's history, or the rows that this batch made.
EntryPages entry_pages(const ExecContext& ctx, const Batch& batch, const RatioPlan& ratio,
                       const Tensor& entries, int64_t width, int64_t layer, bool for_indexer) {
  std::vector<const void*> tables;
  std::vector<KeyPages> pages;
  std::vector<size_t> table_begin;
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    const SequenceState* state = batch.segments[s].state;
    table_begin.push_back(tables.size());
    if (state != nullptr) {
      pages.push_back(for_indexer ? state->indexer_key_pages(layer) : state->entry_pages(layer));
      tables.insert(tables.end(), pages.back().pages, pages.back().pages + pages.back().num_pages);
    } else {
      const int64_t begin = ratio.entry_begin[static_cast<int64_t>(s)];
      const int64_t count = ratio.entry_begin[static_cast<int64_t>(s) + 1] - begin;
      tables.push_back(entries.f32() + begin * width);
      pages.push_back({nullptr, count > 0 ? count : 1, f32_entries(width), 1});
    }
  }
  EntryPages result;
  result.tables = {ctx, std::move(tables)};
  for (size_t s = 0; s < pages.size(); ++s) {
    pages[s].pages = result.tables.data() + table_begin[s];
  }
  result.pages = {ctx, std::move(pages)};
  return result;
}

/// The normed, rotated KV rows behind each segment's cached window rows; keeps the last W in the
/// ring.
Tensor window_rows(const ExecContext& ctx, const ModelConfig& c, const Batch& batch,
                   const BatchPlan& plan, const Tensor& kv, int64_t layer) {
  const int64_t W = c.sliding_window;
  EntryFormat format = f32_entries(c.head_dim);
  std::vector<WindowSegment> segments;
  std::vector<WindowKeep> rings;
  for (int64_t s = 0; s < plan.S; ++s) {
    const size_t i = static_cast<size_t>(s);
    const Segment& segment = batch.segments[i];
    segments.push_back({.ring = nullptr,
                        .start_pos = segment.start_pos,
                        .num_cached = plan.num_cached[i],
                        .num_tokens = segment.num_tokens,
                        .first_row = plan.window_row[i],
                        .first_fresh = plan.row_begin[i]});
    if (segment.state == nullptr) continue;
    const StateLayout& layout = segment.state->layout();
    format = layout.window_row;
    const std::span<uint8_t> ring = segment.state->layer(layer).window;
    segments.back().ring = ring.data();
    for (const Checkpoint& checkpoint : segment.checkpoints) {
      const std::span<uint8_t> kept = checkpoint.block->layer(layout, layer).window;
      copy_memory(ctx.device, kept.data(), ring.data(), kept.size_bytes());
      rings.push_back({kept.data(), segment.start_pos, checkpoint.num_tokens - segment.start_pos,
                       plan.row_begin[i]});
    }
    rings.push_back({ring.data(), segment.start_pos, segment.num_tokens, plan.row_begin[i]});
  }
  if (rings.empty()) return kv;
  Tensor rows = Tensor::empty(ctx, {plan.num_window_rows, c.head_dim});
  window_gather(ctx, format, W, segments, kv.f32(), rows.f32());
  window_keep(ctx, format, W, rings, kv.f32());
  return rows;
}

/// Chooses the compressed entries that each query of a ratio-4 layer sees.
void pick_entries(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                  const IndexerWeights& w, const Batch& batch, const BatchPlan& plan,
                  const LayerId& id, const Tensor& x, AttentionActivations* acts) {
  const int64_t T = x.dim(0), Hi = c.index_n_heads, di = c.index_head_dim, K = c.index_topk;
  const RatioPlan& ratio = plan.ratio_plan(w.compressor.ratio);
  const CompressorActivations keys = compress(ctx, c, rounding, w.compressor, batch, plan, x,
                                              id.state_layer, /*for_indexer=*/true);
  const Tensor q = rounding.activation(ctx, project(ctx, w.wq_b, acts->q_normed));
  rotate(ctx, plan.compress_rope, q.f32(), T, Hi, di, c.qk_rope_head_dim, /*inverse=*/false);
  rounding.indexer(ctx, rounding.activation(ctx, q), di);
  Tensor weights = project(ctx, w.weights_proj, x);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(di)) /
                                         std::sqrt(static_cast<double>(Hi)));
  scale_elements(ctx, weights.numel(), scale, weights.f32());
  const EntryPages pages =
      entry_pages(ctx, batch, ratio, keys.entries, di, id.state_layer, /*for_indexer=*/true);
  acts->picks = Tensor::empty(ctx, {T, K}, DType::kI32);
  acts->num_picks = Tensor::empty(ctx, {T}, DType::kI32);
  indexer_topk(ctx, {.q = q.f32(),
                     .weights = weights.f32(),
                     .segment_pages = pages.pages.data(),
                     .segment_of = plan.segment_of.data() + plan.context_rows.begin,
                     .num_visible = ratio.num_visible.data() + plan.context_rows.begin,
                     .T = T,
                     .Hi = Hi,
                     .di = di,
                     .topk = K,
                     .max_visible = ratio.max_visible,
                     .picks = acts->picks.i32(),
                     .num_picks = acts->num_picks.i32()});
  if (id.choices != nullptr) id.choices->add_picks(id.indexer_layer, acts->picks);
}

/// How many entries each query sees, and the most that any does.
struct EntryCounts {
  const int32_t* counts;
  int64_t max;
};

EntryCounts entry_counts(const ModelConfig& c, const AttentionWeights& w, const BatchPlan& plan,
                         const AttentionActivations& acts) {
  if (!w.compressor) return {plan.no_entries.data(), 0};
  const RatioPlan& ratio = plan.ratio_plan(w.ratio);
  if (!w.indexer) return {ratio.num_visible.data() + plan.context_rows.begin, ratio.max_visible};
  return {acts.num_picks.i32(), std::min(ratio.max_visible, c.index_topk)};
}

SparseAttentionFwd attention_params(const ModelConfig& c, const AttentionWeights& w,
                                    const BatchPlan& plan, const AttentionActivations& acts) {
  const EntryCounts entries = entry_counts(c, w, plan, acts);
  return {.q = acts.q.f32(),
          .window_kv = acts.window_kv.f32(),
          .window_begin = plan.window_begin.data() + plan.context_rows.begin,
          .window_count = plan.window_count.data() + plan.context_rows.begin,
          .segment_pages = acts.pages.pages.data(),
          .segment_of = plan.segment_of.data() + plan.context_rows.begin,
          .picks = w.indexer ? acts.picks.i32() : nullptr,
          .picks_stride = c.index_topk,
          .num_picks = entries.counts,
          .sink = w.attn_sink.data(),
          .scale = attention_scale(c),
          .T = plan.context_rows.count,
          .H = w.attn_sink.numel(),
          .hd = c.head_dim,
          .max_window = plan.max_window,
          .max_picks = entries.max,
          .o = acts.o.f32(),
          .lse = acts.lse.f32(),
          .bf16_p = w.rounding.bf16_p()};
}

/// The batch's window keys with the cached ones in front; keeps them in the states.
/// @param kv_raw set to wkv x, for the backward.
Tensor window_keys(const ExecContext& ctx, const ModelConfig& c, const AttentionWeights& w,
                   const Batch& batch, const BatchPlan& plan, int64_t layer, const Tensor& x,
                   Tensor* kv_raw) {
  *kv_raw = w.rounding.activation(ctx, project(ctx, w.wkv, x));
  const Tensor kv = w.rounding.activation(ctx, normed(ctx, *kv_raw, &w.kv_norm, c.rms_norm_eps));
  rotate(ctx, plan.rope(w.ratio), kv.f32(), x.dim(0), 1, c.head_dim, c.qk_rope_head_dim,
         /*inverse=*/false);
  w.rounding.latent(ctx, w.rounding.activation(ctx, kv), c.qk_rope_head_dim);
  return window_rows(ctx, c, batch, plan, plan.window_rows.fetch(ctx, kv), layer);
}

/// The rank's streams' rows -> all rows of its context, and back.
Tensor gather_context(const BatchPlan& plan, const Tensor& own) {
  return plan.layout->sequence_parallel ? gather_rows_of(plan.layout->tp, plan.context_rows, own)
                                        : own;
}
Tensor own_of_context(const BatchPlan& plan, const Tensor& all) {
  return plan.layout->sequence_parallel ? own_rows_of(plan.layout->tp, plan.context_rows, all)
                                        : all;
}

/// wo_b z for the rank's streams, rounded once.
Tensor project_output(const ExecContext& ctx, const AttentionWeights& w, const BatchPlan& plan,
                      const Tensor& z) {
  const Layout& layout = *plan.layout;
  if (!w.wo_b.is_sharded()) {
    return w.rounding.activation(
        ctx, project(ctx, w.wo_b, own_of_context(plan, z), row_parallel_parts(w.wo_b)));
  }
  Tensor y = project(ctx, w.wo_b, z, row_parallel_parts(w.wo_b));
  if (layout.sequence_parallel) {
    y = sum_own_rows_of(layout.tp, plan.context_rows, y, dist::SumOrder::kTree);
  } else {
    layout.tp.sum(y.f32(), y.numel(), dist::SumOrder::kTree);
  }
  return w.rounding.activation(ctx, y);
}

}  // namespace

void attention_window(const ExecContext& ctx, const ModelConfig& c, const AttentionWeights& w,
                      const Batch& batch, const BatchPlan& plan, int64_t layer, const Tensor& x) {
  Tensor kv_raw;
  window_keys(ctx, c, w, batch, plan, layer, gather_context(plan, x), &kv_raw);
}

Tensor attention_forward(const ExecContext& ctx, const ModelConfig& c, const AttentionWeights& w,
                         const Batch& batch, const BatchPlan& plan, const LayerId& id,
                         const Tensor& own_x, AttentionActivations* acts) {
  const int64_t T = plan.context_rows.count, H = w.attn_sink.numel(), hd = c.head_dim;
  const int64_t G = w.wo_a.panels.num_blocks;
  const dist::Group& tp = plan.layout->tp;
  const RotaryTable& rope = plan.rope(w.ratio);
  AttentionActivations& a = *acts;
  a.x = gather_context(plan, own_x);
  const Tensor& x = a.x;

  const Rounding& rounding = w.rounding;
  a.q_low = rounding.activation(ctx, project(ctx, w.wq_a, x));
  a.q_normed = rounding.activation(ctx, normed(ctx, a.q_low, &w.q_norm, c.rms_norm_eps));
  Tensor q_raw = rounding.activation(ctx, project(ctx, w.wq_b, a.q_normed));
  if (q_raw.dim(1) != H * hd) q_raw = columns_of(q_raw, H * hd * tp.rank(), H * hd);
  a.q_raw = q_raw.reshape({T, H, hd});
  a.q = rounding.activation(ctx, normed(ctx, a.q_raw, nullptr, c.rms_norm_eps));
  rotate(ctx, rope, a.q.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/false);
  rounding.activation(ctx, a.q);

  a.window_kv = window_keys(ctx, c, w, batch, plan, id.state_layer, x, &a.kv_raw);

  if (w.compressor) {
    const RatioPlan& ratio = plan.ratio_plan(w.ratio);
    a.compressor = compress(ctx, c, rounding, *w.compressor, batch, plan, x, id.state_layer,
                            /*for_indexer=*/false);
    a.pages = entry_pages(ctx, batch, ratio, a.compressor.entries, hd, id.state_layer,
                          /*for_indexer=*/false);
    if (w.indexer) pick_entries(ctx, c, rounding, *w.indexer, batch, plan, id, x, &a);
  }

  a.o = Tensor::empty(ctx, {T, H, hd});
  a.lse = Tensor::empty(ctx, {T, H});
  sparse_attention_fwd(ctx, attention_params(c, w, plan, a));
  rounding.activation(ctx, a.o);

  // The values carry the keys' rotation; turning the sum back by the query's angle leaves only
  // relative positions.
  a.o_rotated = a.o.clone();
  rotate(ctx, rope, a.o_rotated.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/true);
  rounding.activation(ctx, a.o_rotated);
  a.z = Tensor::empty(ctx, {T, G * c.o_lora_rank});
  for (int64_t g = 0; g < G; ++g) {
    linear_fwd(ctx, {.x = a.o_rotated.f32() + g * w.wo_a.panels.cols,
                     .x_stride = H * hd,
                     .w_panels = w.wo_a.data() + g * w.wo_a.panels.block_size(),
                     .y = a.z.f32() + g * c.o_lora_rank,
                     .y_stride = G * c.o_lora_rank,
                     .T = T,
                     .N = c.o_lora_rank,
                     .K = w.wo_a.panels.cols});
  }
  rounding.activation(ctx, a.z);
  if (!w.wo_b.is_sharded()) a.z = gather_columns(tp, a.z);
  return project_output(ctx, w, plan, a.z);
}

namespace {

/// Gradients of the compressor's branch; adds to dx.
void compress_backward(const ExecContext& ctx, const ModelConfig& c, CompressorWeights& w,
                       const BatchPlan& plan, const Tensor& x, const CompressorActivations& acts,
                       const Tensor& dseen, Tensor* dx) {
  const RatioPlan& ratio = plan.ratio_plan(w.ratio);
  const int64_t row = w.coff * w.width;
  const Tensor dentries = ratio.entries.give_back(ctx, dseen);
  rotate(ctx, ratio.entry_rope, dentries.f32(), ratio.num_own(), 1, w.width, c.qk_rope_head_dim,
         /*inverse=*/true);
  Tensor dpooled = normed_backward(ctx, acts.pooled, &w.norm, c.rms_norm_eps, dentries);
  if (ratio.num_leads > 0) {
    // The entry in front, which only opens the overlap here, has its gradient elsewhere.
    const Tensor padded = Tensor::zeros(ctx, {ratio.num_leads + ratio.num_own(), w.width});
    copy_memory(ctx.device, padded.rows(ratio.num_leads, padded.dim(0)).bytes(), dpooled.bytes(),
                static_cast<size_t>(dpooled.num_bytes()));
    dpooled = padded;
  }
  // Rows of other ranks that no stretch here covers keep the zeros.
  const bool covered = ratio.token_rows.group.size() == 1;
  Tensor dvalues =
      covered ? Tensor::empty(ctx, acts.values.shape()) : Tensor::zeros(ctx, acts.values.shape());
  Tensor dgates =
      covered ? Tensor::empty(ctx, acts.gates.shape()) : Tensor::zeros(ctx, acts.gates.shape());
  for (const PoolStretch& stretch : ratio.stretches) {
    const int64_t begin = stretch.first_row;
    compressor_bwd(ctx, {.v = acts.values.f32() + begin * row,
                         .g = acts.gates.f32() + begin * row,
                         .ape = w.ape.data(),
                         .dentries = dpooled.f32() + stretch.first_entry * w.width,
                         .num_tokens = stretch.num_tokens,
                         .ratio = w.ratio,
                         .coff = w.coff,
                         .c = w.width,
                         .dv = dvalues.f32() + begin * row,
                         .dg = dgates.f32() + begin * row,
                         .dape = w.ape.grad_or_null()});
  }
  project_backward(ctx, w.wkv, x, ratio.token_rows.give_back(ctx, dvalues), dx,
                   /*accumulate=*/true);
  project_backward(ctx, w.wgate, x, ratio.token_rows.give_back(ctx, dgates), dx,
                   /*accumulate=*/true);
}

}  // namespace

Tensor attention_backward(const ExecContext& ctx, const ModelConfig& c, AttentionWeights& w,
                          const BatchPlan& plan, const AttentionActivations& a,
                          const Tensor& dout) {
  const int64_t T = plan.context_rows.count, H = w.attn_sink.numel(), hd = c.head_dim;
  const int64_t G = w.wo_a.panels.num_blocks, width = G * c.o_lora_rank;
  const dist::Group& tp = plan.layout->tp;
  const RotaryTable& rope = plan.rope(w.ratio);
  const Tensor& x = a.x;

  Tensor dz = Tensor::empty(ctx, a.z.shape());
  project_backward(ctx, w.wo_b, a.z, gather_context(plan, dout), &dz, /*accumulate=*/false);
  if (dz.dim(1) != width) dz = columns_of(dz, width * tp.rank(), width);
  Tensor d_o = Tensor::empty(ctx, a.o.shape());
  for (int64_t g = 0; g < G; ++g) {
    const int64_t K = w.wo_a.panels.cols, N = c.o_lora_rank;
    linear_bwd_input(ctx, {.dy = dz.f32() + g * N,
                           .dy_stride = G * N,
                           .w_panels = w.wo_a.data() + g * w.wo_a.panels.block_size(),
                           .dx = d_o.f32() + g * K,
                           .dx_stride = H * hd,
                           .T = T,
                           .N = N,
                           .K = K});
    if (w.wo_a.grad.defined()) {
      linear_bwd_weight(ctx, {.x = a.o_rotated.f32() + g * K,
                              .x_stride = H * hd,
                              .dy = dz.f32() + g * N,
                              .dy_stride = G * N,
                              .dw_panels = w.wo_a.grad.f32() + g * w.wo_a.panels.block_size(),
                              .T = T,
                              .N = N,
                              .K = K});
    }
  }
  // The gradient of a rotation by -angle is a rotation by +angle.
  rotate(ctx, rope, d_o.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/false);

  Tensor dq = Tensor::empty(ctx, a.q.shape());
  Tensor dwindow = Tensor::zeros(ctx, {plan.num_window_rows, hd});
  Tensor dsink = Tensor::zeros(ctx, {H});
  Tensor dentries;
  if (w.compressor) dentries = Tensor::zeros(ctx, a.compressor.entries.shape());
  sparse_attention_bwd(
      ctx, {.fwd = attention_params(c, w, plan, a),
            .do_ = d_o.f32(),
            .num_window_rows = plan.num_window_rows,
            .entry_begin = w.compressor ? plan.ratio_plan(w.ratio).entry_begin.data()
                                        : plan.no_entry_begin.data(),
            .num_segments = plan.S,
            .num_entries = w.compressor ? plan.ratio_plan(w.ratio).num_entries() : 0,
            .dq = dq.f32(),
            .dwindow_kv = dwindow.f32(),
            .dcompressed = w.compressor ? dentries.f32() : nullptr,
            .dsink = w.attn_sink.grad.defined() ? w.attn_sink.grad.f32() : dsink.f32()});

  tp.sum(dwindow.f32(), dwindow.numel());  // of all heads
  if (w.compressor) tp.sum(dentries.f32(), dentries.numel());

  rotate(ctx, rope, dq.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/true);
  Tensor dq_raw = normed_backward(ctx, a.q_raw, nullptr, c.rms_norm_eps, dq).reshape({T, H * hd});
  if (!w.wq_b.is_sharded()) dq_raw = gather_columns(tp, dq_raw);
  Tensor dq_normed = Tensor::empty(ctx, a.q_normed.shape());
  project_backward(ctx, w.wq_b, a.q_normed, dq_raw, &dq_normed, /*accumulate=*/false);
  if (w.wq_b.is_sharded()) tp.sum(dq_normed.f32(), dq_normed.numel());
  const Tensor dq_low = normed_backward(ctx, a.q_low, &w.q_norm, c.rms_norm_eps, dq_normed);
  Tensor dx = Tensor::empty(ctx, x.shape());
  project_backward(ctx, w.wq_a, x, dq_low, &dx, /*accumulate=*/false);

  const Tensor dkv = plan.window_rows.give_back(ctx, dwindow);
  rotate(ctx, rope, dkv.f32(), T, 1, hd, c.qk_rope_head_dim, /*inverse=*/true);
  const Tensor dkv_raw = normed_backward(ctx, a.kv_raw, &w.kv_norm, c.rms_norm_eps, dkv);
  project_backward(ctx, w.wkv, x, dkv_raw, &dx, /*accumulate=*/true);

  if (w.compressor) {
    compress_backward(ctx, c, *w.compressor, plan, x, a.compressor, dentries, &dx);
  }
  return own_of_context(plan, dx);
}

}  // namespace fathom
