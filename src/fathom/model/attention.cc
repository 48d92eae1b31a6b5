// Legend: T tokens, S segments, D hidden, H heads, hd head dim, Rq query rank, G groups, Ro output
// rank.
#include "fathom/model/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/kernels/compressor/compressor.h"
#include "fathom/kernels/indexer/indexer.h"
#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/quant/entry_codec.h"
#include "fathom/kernels/sparse_attention/sparse_attention.h"
#include "fathom/model/projection.h"
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

/// Pools the batch's tokens into new entries, normed and rotated, and appends them to the states.
CompressorActivations compress(const ExecContext& ctx, const ModelConfig& c,
                               const Rounding& rounding, const CompressorWeights& w,
                               const Batch& batch, const BatchPlan& plan, const Tensor& x,
                               int64_t layer, bool for_indexer) {
  const RatioPlan& ratio = plan.ratio_plan(w.ratio);
  const int64_t row = w.coff * w.width;
  CompressorActivations a;
  a.values = project(ctx, w.wkv, x);
  a.gates = project(ctx, w.wgate, x);
  a.pooled = Tensor::empty({ratio.num_entries(), w.width});
  std::vector<float> fresh_state(static_cast<size_t>(compressor_state_size(w.coff, w.width)));
  const auto state_of = [&](const LayerState& l) {
    return for_indexer ? l.indexer_compressor : l.compressor;
  };
  for (int64_t s = 0; s < plan.S; ++s) {
    const Segment& segment = batch.segments[static_cast<size_t>(s)];
    float* state = fresh_state.data();
    if (segment.state != nullptr) {
      state = state_of(segment.state->layer(layer)).data();
    } else {
      compressor_state_clear(state, w.coff, w.width);
    }
    const int64_t first_entry = segment.start_pos / w.ratio;
    int64_t position = segment.start_pos;
    const auto run_to = [&](int64_t end) {
      const int64_t begin = plan.row_begin[static_cast<size_t>(s)] + position - segment.start_pos;
      const int64_t entry =
          ratio.entry_begin[static_cast<size_t>(s)] + position / w.ratio - first_entry;
      compressor_fwd(ctx, {.v = a.values.f32() + begin * row,
                           .g = a.gates.f32() + begin * row,
                           .ape = w.ape.data(),
                           .start_pos = position,
                           .num_tokens = end - position,
                           .ratio = w.ratio,
                           .coff = w.coff,
                           .c = w.width,
                           .state = state,
                           .entries = a.pooled.f32() + entry * w.width});
      position = end;
    };
    for (const Checkpoint& checkpoint : segment.checkpoints) {
      run_to(checkpoint.num_tokens);
      const std::span<float> kept =
          state_of(checkpoint.block->layer(segment.state->layout(), layer));
      std::memcpy(kept.data(), state, kept.size_bytes());
    }
    run_to(segment.start_pos + segment.num_tokens);
  }
  rounding.activation(ctx, a.pooled);
  a.entries = rounding.activation(ctx, normed(ctx, a.pooled, &w.norm, c.rms_norm_eps));
  rotate(ctx, ratio.entry_rope, a.entries.f32(), ratio.num_entries(), 1, w.width,
         c.qk_rope_head_dim, /*inverse=*/false);
  rounding.activation(ctx, a.entries);
  if (for_indexer) {
    rounding.indexer(ctx, a.entries, w.width);
  } else {
    rounding.latent(ctx, a.entries, c.qk_rope_head_dim);
  }
  for (int64_t s = 0; s < plan.S; ++s) {
    SequenceState* state = batch.segments[static_cast<size_t>(s)].state;
    if (state == nullptr) continue;
    const int64_t begin = ratio.entry_begin[static_cast<size_t>(s)];
    const int64_t end = ratio.entry_begin[static_cast<size_t>(s) + 1];
    const float* entries = a.entries.f32() + begin * w.width;
    if (for_indexer) {
      state->append_indexer_keys(layer, entries, end - begin);
    } else {
      state->append_entries(layer, entries, end - begin);
    }
  }
  return a;
}

/// Where each segment's entries live: its state's history, or the rows that this batch made.
/// @param singles [S] memory for the one-page tables of stateless segments; outlives the result.
std::vector<KeyPages> entry_pages(const Batch& batch, const RatioPlan& ratio, const Tensor& entries,
                                  int64_t width, int64_t layer, bool for_indexer,
                                  std::vector<const void*>* singles) {
  const size_t S = batch.segments.size();
  singles->resize(S);
  std::vector<KeyPages> pages(S);
  for (size_t s = 0; s < S; ++s) {
    const SequenceState* state = batch.segments[s].state;
    if (state != nullptr) {
      pages[s] = for_indexer ? state->indexer_key_pages(layer) : state->entry_pages(layer);
    } else {
      (*singles)[s] = entries.f32() + ratio.entry_begin[s] * width;
      const int64_t count = ratio.entry_begin[s + 1] - ratio.entry_begin[s];
      pages[s] = {&(*singles)[s], count > 0 ? count : 1, f32_entries(width)};
    }
  }
  return pages;
}

/// The normed, rotated KV rows behind each segment's cached window rows; keeps the last W in the
/// ring.
Tensor window_rows(const ExecContext& ctx, const ModelConfig& c, const Batch& batch,
                   const BatchPlan& plan, const Tensor& kv, int64_t layer) {
  const int64_t hd = c.head_dim, W = c.sliding_window;
  const size_t row_bytes = static_cast<size_t>(hd) * sizeof(float);
  bool any_state = false;
  for (const Segment& s : batch.segments) any_state |= s.state != nullptr;
  if (!any_state) return kv;
  Tensor rows = Tensor::empty({plan.num_window_rows, hd});
  for (int64_t s = 0; s < plan.S; ++s) {
    const size_t i = static_cast<size_t>(s);
    const Segment& segment = batch.segments[i];
    float* out = rows.f32() + plan.window_row[i] * hd;
    const float* fresh = kv.f32() + plan.row_begin[i] * hd;
    if (segment.state != nullptr) {
      const EntryFormat& row = segment.state->layout().window_row;
      uint8_t* ring = segment.state->layer(layer).window.data();
      for (int64_t j = 0; j < plan.num_cached[i]; ++j) {
        const int64_t position = segment.start_pos - plan.num_cached[i] + j;
        decode_entries(ctx, row, ring + position % W * row.num_bytes, 1, out + j * hd);
      }
      const auto keep_last = [&](uint8_t* into, int64_t num_fresh) {
        for (int64_t j = std::max<int64_t>(0, num_fresh - W); j < num_fresh; ++j) {
          uint8_t* at = into + (segment.start_pos + j) % W * row.num_bytes;
          encode_entries(row, fresh + j * hd, 1, at);
        }
      };
      for (const Checkpoint& checkpoint : segment.checkpoints) {
        const LayerState kept = checkpoint.block->layer(segment.state->layout(), layer);
        std::memcpy(kept.window.data(), ring, kept.window.size_bytes());
        keep_last(kept.window.data(), checkpoint.num_tokens - segment.start_pos);
      }
      keep_last(ring, segment.num_tokens);
    }
    std::memcpy(out + plan.num_cached[i] * hd, fresh,
                static_cast<size_t>(segment.num_tokens) * row_bytes);
  }
  return rows;
}

/// Chooses the compressed entries that each query of a ratio-4 layer sees.
void pick_entries(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                  const IndexerWeights& w, const Batch& batch, const BatchPlan& plan, int64_t layer,
                  int64_t indexer_layer, const Tensor& x, AttentionActivations* acts) {
  const int64_t T = plan.T, Hi = c.index_n_heads, di = c.index_head_dim, K = c.index_topk;
  const RatioPlan& ratio = plan.ratio_plan(w.compressor.ratio);
  const CompressorActivations keys =
      compress(ctx, c, rounding, w.compressor, batch, plan, x, layer, /*for_indexer=*/true);
  const Tensor q = rounding.activation(ctx, project(ctx, w.wq_b, acts->q_normed));
  rotate(ctx, plan.compress_rope, q.f32(), T, Hi, di, c.qk_rope_head_dim, /*inverse=*/false);
  rounding.indexer(ctx, rounding.activation(ctx, q), di);
  Tensor weights = project(ctx, w.weights_proj, x);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(di)) /
                                         std::sqrt(static_cast<double>(Hi)));
  for (int64_t i = 0; i < weights.numel(); ++i) weights.f32()[i] *= scale;
  std::vector<const void*> singles;
  const std::vector<KeyPages> pages =
      entry_pages(batch, ratio, keys.entries, di, layer, /*for_indexer=*/true, &singles);
  acts->picks.assign(static_cast<size_t>(T * K), -1);
  acts->num_picks.assign(static_cast<size_t>(T), 0);
  indexer_topk(ctx, {.q = q.f32(),
                     .weights = weights.f32(),
                     .segment_pages = pages.data(),
                     .segment_of = plan.segment_of.data(),
                     .num_visible = ratio.num_visible.data(),
                     .T = T,
                     .Hi = Hi,
                     .di = di,
                     .topk = K,
                     .picks = acts->picks.data(),
                     .num_picks = acts->num_picks.data()});
  for (int64_t t = 0; t < T; ++t) {
    ReplayRecord* record =
        batch.segments[static_cast<size_t>(plan.segment_of[static_cast<size_t>(t)])].replay_out;
    if (record == nullptr || record->num_indexer_layers == 0) continue;
    std::memcpy(record->pick_row(plan.positions[static_cast<size_t>(t)], indexer_layer),
                acts->picks.data() + t * K, static_cast<size_t>(K) * sizeof(int32_t));
  }
}

SparseAttentionFwd attention_params(const ModelConfig& c, const AttentionWeights& w,
                                    const BatchPlan& plan, const AttentionActivations& acts) {
  return {.q = acts.q.f32(),
          .window_kv = acts.window_kv.f32(),
          .window_begin = plan.window_begin.data(),
          .window_count = plan.window_count.data(),
          .segment_pages = acts.pages.data(),
          .segment_of = plan.segment_of.data(),
          .picks = w.indexer ? acts.picks.data() : nullptr,
          .picks_stride = c.index_topk,
          .num_picks = acts.num_picks.data(),
          .sink = w.attn_sink.data(),
          .scale = attention_scale(c),
          .T = plan.T,
          .H = c.num_attention_heads,
          .hd = c.head_dim,
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
  rotate(ctx, plan.rope(w.ratio), kv.f32(), plan.T, 1, c.head_dim, c.qk_rope_head_dim,
         /*inverse=*/false);
  w.rounding.latent(ctx, w.rounding.activation(ctx, kv), c.qk_rope_head_dim);
  return window_rows(ctx, c, batch, plan, kv, layer);
}

}  // namespace

void attention_window(const ExecContext& ctx, const ModelConfig& c, const AttentionWeights& w,
                      const Batch& batch, const BatchPlan& plan, int64_t layer, const Tensor& x) {
  Tensor kv_raw;
  window_keys(ctx, c, w, batch, plan, layer, x, &kv_raw);
}

Tensor attention_forward(const ExecContext& ctx, const ModelConfig& c, const AttentionWeights& w,
                         const Batch& batch, const BatchPlan& plan, int64_t layer,
                         int64_t indexer_layer, const Tensor& x, AttentionActivations* acts) {
  const int64_t T = plan.T, H = c.num_attention_heads, hd = c.head_dim, G = c.o_groups;
  const RotaryTable& rope = plan.rope(w.ratio);
  AttentionActivations& a = *acts;

  const Rounding& rounding = w.rounding;
  a.q_low = rounding.activation(ctx, project(ctx, w.wq_a, x));
  a.q_normed = rounding.activation(ctx, normed(ctx, a.q_low, &w.q_norm, c.rms_norm_eps));
  a.q_raw = rounding.activation(ctx, project(ctx, w.wq_b, a.q_normed)).reshape({T, H, hd});
  a.q = rounding.activation(ctx, normed(ctx, a.q_raw, nullptr, c.rms_norm_eps));
  rotate(ctx, rope, a.q.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/false);
  rounding.activation(ctx, a.q);

  a.window_kv = window_keys(ctx, c, w, batch, plan, layer, x, &a.kv_raw);

  if (w.compressor) {
    const RatioPlan& ratio = plan.ratio_plan(w.ratio);
    a.compressor =
        compress(ctx, c, rounding, *w.compressor, batch, plan, x, layer, /*for_indexer=*/false);
    a.pages = entry_pages(batch, ratio, a.compressor.entries, hd, layer, /*for_indexer=*/false,
                          &a.single_pages);
    if (w.indexer) {
      pick_entries(ctx, c, rounding, *w.indexer, batch, plan, layer, indexer_layer, x, &a);
    } else {
      a.num_picks = ratio.num_visible;
    }
  } else {
    a.pages.assign(static_cast<size_t>(plan.S), KeyPages{});
    a.num_picks.assign(static_cast<size_t>(T), 0);
  }

  a.o = Tensor::empty({T, H, hd});
  a.lse = Tensor::empty({T, H});
  sparse_attention_fwd(ctx, attention_params(c, w, plan, a));
  rounding.activation(ctx, a.o);

  // The values carry the keys' rotation; turning the sum back by the query's angle leaves only
  // relative positions.
  a.o_rotated = a.o.clone();
  rotate(ctx, rope, a.o_rotated.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/true);
  rounding.activation(ctx, a.o_rotated);
  a.z = Tensor::empty({T, G * c.o_lora_rank});
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
  return rounding.activation(ctx, project(ctx, w.wo_b, a.z, row_parallel_parts(w.wo_b)));
}

namespace {

/// Gradients of the compressor's branch; adds to dx.
void compress_backward(const ExecContext& ctx, const ModelConfig& c, CompressorWeights& w,
                       const BatchPlan& plan, const Tensor& x, const CompressorActivations& acts,
                       Tensor dentries, Tensor* dx) {
  const RatioPlan& ratio = plan.ratio_plan(w.ratio);
  const int64_t row = w.coff * w.width;
  rotate(ctx, ratio.entry_rope, dentries.f32(), ratio.num_entries(), 1, w.width, c.qk_rope_head_dim,
         /*inverse=*/true);
  const Tensor dpooled = normed_backward(ctx, acts.pooled, &w.norm, c.rms_norm_eps, dentries);
  Tensor dvalues = Tensor::empty(acts.values.shape());
  Tensor dgates = Tensor::empty(acts.gates.shape());
  for (int64_t s = 0; s < plan.S; ++s) {
    const size_t i = static_cast<size_t>(s);
    const int64_t begin = plan.row_begin[i];
    compressor_bwd(ctx, {.v = acts.values.f32() + begin * row,
                         .g = acts.gates.f32() + begin * row,
                         .ape = w.ape.data(),
                         .dentries = dpooled.f32() + ratio.entry_begin[i] * w.width,
                         .num_tokens = plan.row_begin[i + 1] - begin,
                         .ratio = w.ratio,
                         .coff = w.coff,
                         .c = w.width,
                         .dv = dvalues.f32() + begin * row,
                         .dg = dgates.f32() + begin * row,
                         .dape = w.ape.grad_or_null()});
  }
  project_backward(ctx, w.wkv, x, dvalues, dx, /*accumulate=*/true);
  project_backward(ctx, w.wgate, x, dgates, dx, /*accumulate=*/true);
}

}  // namespace

Tensor attention_backward(const ExecContext& ctx, const ModelConfig& c, AttentionWeights& w,
                          const BatchPlan& plan, const Tensor& x, const AttentionActivations& a,
                          const Tensor& dout) {
  const int64_t T = plan.T, H = c.num_attention_heads, hd = c.head_dim, G = c.o_groups;
  const RotaryTable& rope = plan.rope(w.ratio);

  Tensor dz = Tensor::empty(a.z.shape());
  project_backward(ctx, w.wo_b, a.z, dout, &dz, /*accumulate=*/false);
  Tensor d_o = Tensor::empty(a.o.shape());
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

  Tensor dq = Tensor::empty(a.q.shape());
  Tensor dkv = Tensor::zeros({plan.num_window_rows, hd});
  Tensor dsink = Tensor::zeros({H});
  Tensor dentries;
  std::vector<int64_t> no_entries(static_cast<size_t>(plan.S) + 1, 0);
  if (w.compressor) dentries = Tensor::zeros(a.compressor.entries.shape());
  sparse_attention_bwd(
      ctx, {.fwd = attention_params(c, w, plan, a),
            .do_ = d_o.f32(),
            .num_window_rows = plan.num_window_rows,
            .entry_begin =
                w.compressor ? plan.ratio_plan(w.ratio).entry_begin.data() : no_entries.data(),
            .num_segments = plan.S,
            .dq = dq.f32(),
            .dwindow_kv = dkv.f32(),
            .dcompressed = w.compressor ? dentries.f32() : nullptr,
            .dsink = w.attn_sink.grad.defined() ? w.attn_sink.grad.f32() : dsink.f32()});

  rotate(ctx, rope, dq.f32(), T, H, hd, c.qk_rope_head_dim, /*inverse=*/true);
  const Tensor dq_raw = normed_backward(ctx, a.q_raw, nullptr, c.rms_norm_eps, dq);
  Tensor dq_normed = Tensor::empty(a.q_normed.shape());
  project_backward(ctx, w.wq_b, a.q_normed, dq_raw.reshape({T, H * hd}), &dq_normed,
                   /*accumulate=*/false);
  const Tensor dq_low = normed_backward(ctx, a.q_low, &w.q_norm, c.rms_norm_eps, dq_normed);
  Tensor dx = Tensor::empty(x.shape());
  project_backward(ctx, w.wq_a, x, dq_low, &dx, /*accumulate=*/false);

  rotate(ctx, rope, dkv.f32(), T, 1, hd, c.qk_rope_head_dim, /*inverse=*/true);
  const Tensor dkv_raw = normed_backward(ctx, a.kv_raw, &w.kv_norm, c.rms_norm_eps, dkv);
  project_backward(ctx, w.wkv, x, dkv_raw, &dx, /*accumulate=*/true);

  if (w.compressor) {
    compress_backward(ctx, c, *w.compressor, plan, x, a.compressor, dentries, &dx);
  }
  return dx;
}

}  // namespace fathom
