#include "fathom/model/forward.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/kernels/rows/rows.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/hyper_connection_weights.h"
#include "fathom/model/layer.h"
#include "fathom/model/projection.h"
#include "fathom/model/row_exchange.h"
#include "fathom/model/sequence_state.h"
#include "fathom/model/vocabulary.h"

namespace fathom {
namespace {

/// Names layer l for states and replay; ratio-4 layers are numbered among themselves.
std::vector<LayerId> layer_ids(const ModelConfig& config) {
  std::vector<LayerId> ids;
  int64_t indexer_layer = 0;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    ids.push_back({l, l, config.ratio(l) == 4 ? indexer_layer++ : -1});
  }
  return ids;
}

Tensor pick_rows(const ExecContext& ctx, const Tensor& streams, const KernelArray<int64_t>& rows) {
  Tensor picked = Tensor::empty(ctx, {rows.size(), streams.dim(1), streams.dim(2)});
  gather_rows(ctx, streams.f32(), rows.data(), rows.size(), streams.dim(1) * streams.dim(2),
              picked.f32());
  return picked;
}

/// hc_head of the picked rows.
Tensor head_streams(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                    const HyperConnectionWeights& hc, const Tensor& picked) {
  Tensor h = Tensor::empty(ctx, {picked.dim(0), c.hidden_size});
  hc_head_fwd(ctx, hc_shape(c, picked.dim(0)), hc_weights(hc), picked.f32(), h.f32());
  return rounding.activation(ctx, h);
}

/// Rows chosen from the T of a batch, and where they lie.
struct ChosenRows {
  std::vector<int64_t> own;     // of this rank's streams, counted among them
  std::vector<int> in_context;  // the member of tp that has each chosen row of this context
  std::vector<int> context;     // the member of cp that has each chosen row
  std::vector<int64_t> places;  // of the own ones among all
};

ChosenRows choose_rows(const Layout& layout, int64_t T, const std::vector<int64_t>& rows) {
  const auto member_of = [](RowRange range, int parts, int64_t row) {
    int i = 0;
    while (row >= share_of_rows(range, i, parts).end()) ++i;
    return i;
  };
  ChosenRows chosen;
  const RowRange mine = layout.stream_rows(T), context = layout.context_rows(T);
  for (size_t r = 0; r < rows.size(); ++r) {
    const int in_cp = member_of({0, T}, layout.cp.size(), rows[r]);
    chosen.context.push_back(in_cp);
    if (in_cp != layout.cp.rank()) continue;
    const int in_tp =
        layout.sequence_parallel ? member_of(context, layout.tp.size(), rows[r]) : layout.tp.rank();
    chosen.in_context.push_back(in_tp);
    if (in_tp != layout.tp.rank()) continue;
    chosen.own.push_back(rows[r] - mine.begin);
    chosen.places.push_back(static_cast<int64_t>(r));
  }
  return chosen;
}

Tensor collapse_with(const ExecContext& ctx, const Weights& w, const HyperConnectionWeights& hc,
                     const Parameter& norm, int64_t T, const Tensor& streams,
                     const std::vector<int64_t>& rows) {
  const auto collapse_own = [&](const std::vector<int64_t>& own) {
    const Tensor h =
        head_streams(ctx, w.config, w.rounding, hc, pick_rows(ctx, streams, {ctx, own}));
    return w.rounding.activation(ctx, normed(ctx, h, &norm, w.config.rms_norm_eps));
  };
  const Layout& layout = w.layout;
  if (layout.has_all_streams()) return collapse_own(rows);
  const ChosenRows chosen = choose_rows(layout, T, rows);
  Tensor hidden = collapse_own(chosen.own);
  if (layout.sequence_parallel) hidden = merge_rows(layout.tp, chosen.in_context, hidden);
  return merge_rows(layout.cp, chosen.context, hidden);
}

Tensor collapse_own_backward(const ExecContext& ctx, const ModelConfig& c, const Rounding& rounding,
                             HyperConnectionWeights& hc, Parameter& norm, const Tensor& streams,
                             const std::vector<int64_t>& row_list, const Tensor& dhidden) {
  const KernelArray<int64_t> rows(ctx, row_list);
  const Tensor picked = pick_rows(ctx, streams, rows);
  const HcShape shape = hc_shape(c, picked.dim(0));
  const Tensor h = head_streams(ctx, c, rounding, hc, picked);
  const Tensor dh = normed_backward(ctx, h, &norm, c.rms_norm_eps, dhidden);
  Tensor dpicked = Tensor::empty(ctx, picked.shape());
  const HcGradBuffers grads(ctx, hc);
  hc_head_bwd(ctx, shape, hc_weights(hc), picked.f32(), dh.f32(), dpicked.f32(), grads.pointers());
  Tensor dstreams = Tensor::zeros(ctx, streams.shape());
  add_rows(ctx, dpicked.f32(), rows.data(), rows.size(), c.hc_mult * c.hidden_size, dstreams.f32());
  return dstreams;
}

Tensor collapse_backward_with(const ExecContext& ctx, Weights& w, HyperConnectionWeights& hc,
                              Parameter& norm, int64_t T, const Tensor& streams,
                              const std::vector<int64_t>& rows, const Tensor& dhidden) {
  const ModelConfig& c = w.config;
  if (w.layout.has_all_streams()) {
    return collapse_own_backward(ctx, c, w.rounding, hc, norm, streams, rows, dhidden);
  }
  const ChosenRows chosen = choose_rows(w.layout, T, rows);
  const KernelArray<int64_t> places(ctx, chosen.places);
  Tensor down = Tensor::empty(ctx, {places.size(), c.hidden_size});
  gather_rows(ctx, dhidden.f32(), places.data(), places.size(), c.hidden_size, down.f32());
  return collapse_own_backward(ctx, c, w.rounding, hc, norm, streams, chosen.own, down);
}

/// One MTP block's input: e_proj·norm(embed[next]) + h_proj·norm(stream), per stream.
struct MtpInputs {
  Tensor next_embedding;  // [T, D]
  Tensor e_normed;        // [T, D]
  Tensor h_normed;        // [T, M, D]
  Tensor streams;         // [T, M, D]
};

MtpInputs mtp_inputs(const ExecContext& ctx, const Weights& w, const Tensor& streams,
                     const std::vector<int32_t>& next_ids) {
  const ModelConfig& c = w.config;
  const MtpWeights& m = w.mtp.front();
  const int64_t T = streams.dim(0), D = c.hidden_size, M = c.hc_mult;
  MtpInputs in;
  in.next_embedding = embed_tokens(ctx, w, next_ids, /*copies=*/1).reshape({T, D});
  const Rounding& rounding = w.rounding;
  in.e_normed = rounding.activation(ctx, normed(ctx, in.next_embedding, &m.enorm, c.rms_norm_eps));
  in.h_normed = rounding.activation(ctx, normed(ctx, streams, &m.hnorm, c.rms_norm_eps));
  const Tensor e = rounding.activation(ctx, project(ctx, m.e_proj, in.e_normed));
  in.streams = rounding.activation(ctx, project(ctx, m.h_proj, in.h_normed)).reshape({T, M, D});
  add_to_streams(ctx, T, M, D, e.f32(), in.streams.f32());
  rounding.activation(ctx, in.streams);
  return in;
}

LayerId mtp_layer_id(const ModelConfig& c) { return {c.num_hidden_layers, -1, -1}; }

/// The MTP block sees the next tokens, at the positions of the rows.
Batch mtp_batch(const Batch& batch, const std::vector<int32_t>& next_ids) {
  Batch shifted = batch;
  shifted.token_ids = next_ids;
  return shifted;
}

}  // namespace

void check_batch(const ModelConfig& config, const Batch& batch) {
  int64_t total = 0;
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    const Segment& segment = batch.segments[s];
    FATHOM_CHECK(segment.num_tokens >= 1 && segment.start_pos >= 0, "batch segment ", s, ": has ",
                 segment.num_tokens, " tokens from position ", segment.start_pos,
                 ", needs at least one token and a position >= 0");
    FATHOM_CHECK(segment.start_pos == 0 || segment.state != nullptr, "batch segment ", s,
                 ": starts at position ", segment.start_pos,
                 " without the state of what came before");
    FATHOM_CHECK(segment.state == nullptr || segment.state->num_tokens() == segment.start_pos,
                 "batch segment ", s, ": starts at position ", segment.start_pos,
                 " but its state ends at ",
                 segment.state == nullptr ? 0 : segment.state->num_tokens());
    FATHOM_CHECK(segment.start_pos + segment.num_tokens <= config.max_position_embeddings,
                 "batch segment ", s, ": ends at position ", segment.start_pos + segment.num_tokens,
                 ", the model's max_position_embeddings is ", config.max_position_embeddings,
                 "\n  fix: shorten the sequence");
    int64_t passed = segment.start_pos;
    for (const Checkpoint& checkpoint : segment.checkpoints) {
      FATHOM_ASSERT(segment.state != nullptr && checkpoint.num_tokens > passed &&
                        checkpoint.num_tokens < segment.start_pos + segment.num_tokens,
                    "segment ", s, ": checkpoint at ", checkpoint.num_tokens);
      passed = checkpoint.num_tokens;
    }
    total += segment.num_tokens;
  }
  FATHOM_CHECK(total == batch.num_tokens(), "batch: segments name ", total,
               " tokens, token_ids has ", batch.num_tokens());
  for (int32_t id : batch.token_ids) {
    FATHOM_CHECK(id >= 0 && id < config.vocab_size, "batch: token id ", id,
                 " is outside the vocabulary of ", config.vocab_size);
  }
}

Tensor embed(const ExecContext& ctx, const Weights& w, const Batch& batch) {
  const ModelConfig& c = w.config;
  check_batch(c, batch);
  return embed_tokens(ctx, w, batch.token_ids, c.hc_mult);
}

Tensor forward_layers(const ExecContext& ctx, const Weights& w, const Batch& batch,
                      const Tensor& streams, Tape* tape) {
  const ModelConfig& c = w.config;
  const BatchPlan plan = make_batch_plan(ctx, c, w.layout, batch, /*for_mtp=*/false);
  std::vector<LayerId> ids = layer_ids(c);
  ChoiceLog choices;
  const bool records = std::any_of(batch.segments.begin(), batch.segments.end(),
                                   [](const Segment& s) { return s.replay_out != nullptr; });
  for (LayerId& id : ids) id.choices = records ? &choices : nullptr;
  Tensor x = streams;
  const size_t first = static_cast<size_t>(w.layout.first_layer);
  for (const Segment& segment : batch.segments) {
    FATHOM_ASSERT(segment.state == nullptr || segment.state->layout().precision == w.precision(),
                  "a state of another precision than the weights' ", precision_name(w.precision()));
  }
  for (size_t l = 0; l < w.layers.size(); ++l) {
    if (tape != nullptr) tape->layer_inputs.push_back(x);
    x = layer_forward(ctx, c, w.layers[l], batch, plan, ids[first + l], x);
  }
  if (records) choices.write(batch, plan);
  for (const Segment& segment : batch.segments) {
    FATHOM_ASSERT(tape == nullptr || segment.state == nullptr, "a tape needs stateless segments");
    if (segment.state != nullptr) segment.state->advance(segment.num_tokens);
  }
  return x;
}

Tensor collapse(const ExecContext& ctx, const Weights& w, const Tensor& streams,
                const std::vector<int64_t>& rows) {
  FATHOM_ASSERT(w.layout.has_all_streams(), "rows of which batch?");
  return collapse_with(ctx, w, w.hc_head, w.norm, streams.dim(0), streams, rows);
}

Tensor collapse(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
                const std::vector<int64_t>& rows) {
  return collapse_with(ctx, w, w.hc_head, w.norm, batch.num_tokens(), streams, rows);
}

Tensor collapse_backward(const ExecContext& ctx, Weights& w, const Batch& batch,
                         const Tensor& streams, const std::vector<int64_t>& rows,
                         const Tensor& dhidden) {
  return collapse_backward_with(ctx, w, w.hc_head, w.norm, batch.num_tokens(), streams, rows,
                                dhidden);
}

Tensor backward_layers(const ExecContext& ctx, Weights& w, const Batch& batch, const Tape& tape,
                       Tensor dstreams) {
  const ModelConfig& c = w.config;
  FATHOM_ASSERT(tape.layer_inputs.size() == w.layers.size(), "tape of ", tape.layer_inputs.size(),
                " layers for a model of ", w.layers.size());
  Batch replayed = batch;  // recomputation reads the same replay and writes nothing
  for (Segment& segment : replayed.segments) segment.replay_out = nullptr;
  const BatchPlan plan = make_batch_plan(ctx, c, w.layout, replayed, /*for_mtp=*/false);
  const std::vector<LayerId> ids = layer_ids(c);
  const size_t first = static_cast<size_t>(w.layout.first_layer);
  for (size_t l = w.layers.size(); l-- > 0;) {
    dstreams = layer_backward(ctx, c, w.layers[l], replayed, plan, ids[first + l],
                              tape.layer_inputs[l], dstreams);
  }
  return dstreams;
}

void embed_backward(const ExecContext& ctx, Weights& w, const Batch& batch,
                    const Tensor& dstreams) {
  embed_tokens_backward(ctx, w, batch.token_ids, dstreams);
}

Tensor mtp(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
           const std::vector<int32_t>& next_ids, Tape* tape) {
  FATHOM_ASSERT(!w.mtp.empty(), "the model has no MTP block");
  const ModelConfig& c = w.config;
  const MtpInputs in = mtp_inputs(ctx, w, streams, next_ids);
  const Batch shifted = mtp_batch(batch, next_ids);
  const BatchPlan plan = make_batch_plan(ctx, c, w.layout, shifted, /*for_mtp=*/true);
  if (tape != nullptr) tape->layer_inputs.push_back(in.streams);
  return layer_forward(ctx, c, w.mtp.front().block, shifted, plan, mtp_layer_id(c), in.streams);
}

void mtp_window(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
                const std::vector<int32_t>& next_ids) {
  FATHOM_ASSERT(!w.mtp.empty(), "the model has no MTP block");
  const ModelConfig& c = w.config;
  const MtpInputs in = mtp_inputs(ctx, w, streams, next_ids);
  const Batch shifted = mtp_batch(batch, next_ids);
  const BatchPlan plan = make_batch_plan(ctx, c, w.layout, shifted, /*for_mtp=*/true);
  layer_window(ctx, c, w.mtp.front().block, shifted, plan, mtp_layer_id(c), in.streams);
}

Tensor mtp_collapse(const ExecContext& ctx, const Weights& w, const Batch& batch,
                    const Tensor& draft_streams, const std::vector<int64_t>& rows) {
  const MtpWeights& m = w.mtp.front();
  return collapse_with(ctx, w, m.hc_head, m.norm, batch.num_tokens(), draft_streams, rows);
}

void mtp_collapse_backward(const ExecContext& ctx, Weights& w, const Batch& batch,
                           const Tensor& draft_streams, const std::vector<int64_t>& rows,
                           const Tensor& dhidden, Tensor* ddraft_streams) {
  MtpWeights& m = w.mtp.front();
  *ddraft_streams = collapse_backward_with(ctx, w, m.hc_head, m.norm, batch.num_tokens(),
                                           draft_streams, rows, dhidden);
}

void mtp_backward(const ExecContext& ctx, Weights& w, const Batch& batch, const Tensor& streams,
                  const std::vector<int32_t>& next_ids, const Tape& tape, Tensor ddraft_streams) {
  const ModelConfig& c = w.config;
  MtpWeights& m = w.mtp.front();
  const int64_t T = streams.dim(0), D = c.hidden_size, M = c.hc_mult;
  const Batch shifted = mtp_batch(batch, next_ids);
  const BatchPlan plan = make_batch_plan(ctx, c, w.layout, shifted, /*for_mtp=*/true);
  const Tensor dstreams = layer_backward(ctx, c, m.block, shifted, plan, mtp_layer_id(c),
                                         tape.layer_inputs.front(), ddraft_streams);
  const MtpInputs in = mtp_inputs(ctx, w, streams, next_ids);
  Tensor de = Tensor::empty(ctx, {T, D});
  sum_streams(ctx, T, M, D, dstreams.f32(), de.f32());
  Tensor de_normed = Tensor::empty(ctx, {T, D}), dh_normed = Tensor::empty(ctx, {T, M, D});
  project_backward(ctx, m.e_proj, in.e_normed, de, &de_normed, /*accumulate=*/false);
  project_backward(ctx, m.h_proj, in.h_normed, dstreams, &dh_normed, /*accumulate=*/false);
  normed_backward(ctx, in.next_embedding, &m.enorm, c.rms_norm_eps, de_normed);
  normed_backward(ctx, streams, &m.hnorm, c.rms_norm_eps, dh_normed);
}

}  // namespace fathom
