#include "fathom/model/forward.h"

#include <algorithm>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/embedding/embedding.h"
#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/kernels/rows/rows.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/hyper_connection_weights.h"
#include "fathom/model/layer.h"
#include "fathom/model/projection.h"
#include "fathom/model/sequence_state.h"

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

/// A host array where the context computes: itself, or a copy on the device.
Tensor place(const ExecContext& ctx, const float* values, int64_t n) {
  const Tensor host = Tensor::view(const_cast<float*>(values), {n});
  return ctx.device == nullptr ? host : host.copy_to(ctx.device);
}

KernelArray<int32_t> ids_of_rows(const ExecContext& ctx, const std::vector<int32_t>& ids,
                                 RowRange rows) {
  return {ctx, {ids.begin() + rows.begin, ids.begin() + rows.end()}};
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

/// The selected rows whose streams are here: which of the rows they are, and where in the streams.
struct OwnSelection {
  RowRange selected;
  std::vector<int64_t> rows;
};

OwnSelection select_own(const Layout& layout, int64_t T, const std::vector<int64_t>& rows) {
  OwnSelection own{layout.selected_rows(T, rows), {}};
  const int64_t first = layout.stream_rows(T).begin;
  for (int64_t i = own.selected.begin; i < own.selected.end(); ++i) {
    own.rows.push_back(rows[static_cast<size_t>(i)] - first);
  }
  return own;
}

/// The members' rows [own, D] one behind the other.
Tensor gather_hidden(const ExecContext& ctx, const dist::Group& group, const Tensor& mine) {
  if (group.size() == 1) return mine;
  const Tensor host = mine.to_host();
  const std::vector<float> all =
      group.concatenate(std::vector<float>(host.f32(), host.f32() + host.numel()));
  const int64_t D = mine.dim(1), R = static_cast<int64_t>(all.size()) / D;
  return Tensor::view(const_cast<float*>(all.data()), {R, D}).copy_to(ctx.device);
}

Tensor collapse_with(const ExecContext& ctx, const Weights& w, const HyperConnectionWeights& hc,
                     const Parameter& norm, int64_t T, const Tensor& streams,
                     const std::vector<int64_t>& rows) {
  const OwnSelection own = select_own(w.layout, T, rows);
  const Tensor h =
      head_streams(ctx, w.config, w.rounding, hc, pick_rows(ctx, streams, {ctx, own.rows}));
  return gather_hidden(ctx, w.layout.cp,
                       w.rounding.activation(ctx, normed(ctx, h, &norm, w.config.rms_norm_eps)));
}

Tensor collapse_backward_with(const ExecContext& ctx, const Weights& w, HyperConnectionWeights& hc,
                              Parameter& norm, int64_t T, const Tensor& streams,
                              const std::vector<int64_t>& row_list, const Tensor& dhidden_all) {
  const ModelConfig& c = w.config;
  const Rounding& rounding = w.rounding;
  const OwnSelection own = select_own(w.layout, T, row_list);
  const Tensor dhidden = dhidden_all.rows(own.selected.begin, own.selected.end());
  const KernelArray<int64_t> rows(ctx, own.rows);
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
  const RowRange rows = w.layout.stream_rows(static_cast<int64_t>(next_ids.size()));
  const int64_t T = rows.count, D = c.hidden_size, M = c.hc_mult;
  MtpInputs in;
  in.next_embedding = Tensor::empty(ctx, {T, D});
  const KernelArray<int32_t> ids = ids_of_rows(ctx, next_ids, rows);
  embedding_fwd(ctx, w.embed.data(), ids.data(), T, D, 1, in.next_embedding.f32());
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
  const RowRange rows = w.layout.stream_rows(batch.num_tokens());
  Tensor streams = Tensor::empty(ctx, {rows.count, c.hc_mult, c.hidden_size});
  const KernelArray<int32_t> ids = ids_of_rows(ctx, batch.token_ids, rows);
  embedding_fwd(ctx, w.embed.data(), ids.data(), rows.count, c.hidden_size, c.hc_mult,
                streams.f32());
  return streams;
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
  return collapse_with(ctx, w, w.hc_head, w.norm, streams.dim(0), streams, rows);
}

Tensor collapse(const ExecContext& ctx, const Weights& w, const Batch& batch, const Tensor& streams,
                const std::vector<int64_t>& rows) {
  return collapse_with(ctx, w, w.hc_head, w.norm, batch.num_tokens(), streams, rows);
}

Tensor logits(const ExecContext& ctx, const Weights& w, const Tensor& hidden) {
  return project(ctx, w.head, hidden).to_host();
}

namespace {

/// The target ids, for kernels. Errors: UserError for one outside the vocabulary.
KernelArray<int32_t> check_targets(const ExecContext& ctx, const Weights& w, const Tensor& hidden,
                                   const std::vector<int32_t>& targets) {
  FATHOM_ASSERT(hidden.dim(0) == static_cast<int64_t>(targets.size()), hidden.dim(0), " rows, ",
                targets.size(), " targets");
  for (size_t r = 0; r < targets.size(); ++r) {
    FATHOM_CHECK(targets[r] >= 0 && targets[r] < w.config.vocab_size, "log_prob: token id ",
                 targets[r], " at row ", r, " is outside the vocabulary of ", w.config.vocab_size,
                 " tokens");
  }
  return {ctx, targets};
}

}  // namespace

namespace {

Tensor log_probs_of_all(const ExecContext& ctx, const Weights& w, const Tensor& hidden,
                        const std::vector<int32_t>& targets, float temperature, float* entropy) {
  const int64_t R = hidden.dim(0);
  const KernelArray<int32_t> ids = check_targets(ctx, w, hidden, targets);
  const Tensor out = Tensor::empty(ctx, {R});
  const Tensor entropies = entropy == nullptr ? Tensor() : Tensor::empty(ctx, {R});
  log_prob_fwd(ctx, {.hidden = hidden.f32(),
                     .w_panels = w.head.data(),
                     .targets = ids.data(),
                     .R = R,
                     .D = w.config.hidden_size,
                     .V = w.config.vocab_size,
                     .temperature = temperature,
                     .log_probs = out.f32(),
                     .lse = nullptr,
                     .entropy = entropy == nullptr ? nullptr : entropies.f32()});
  if (entropy != nullptr) {
    download_memory(ctx.device, entropy, entropies.bytes(),
                    static_cast<size_t>(entropies.num_bytes()));
  }
  return out.to_host();
}

Tensor backward_of_all(const ExecContext& ctx, Weights& w, const Tensor& hidden,
                       const std::vector<int32_t>& targets, float temperature,
                       const float* dlog_probs, const float* dentropy) {
  const int64_t R = hidden.dim(0);
  const KernelArray<int32_t> ids = check_targets(ctx, w, hidden, targets);
  const Tensor log_prob = Tensor::empty(ctx, {R}), lse = Tensor::empty(ctx, {R});
  const Tensor entropy = Tensor::empty(ctx, {R});
  const Tensor dlogp = place(ctx, dlog_probs, R);
  const Tensor dh = dentropy == nullptr ? Tensor() : place(ctx, dentropy, R);
  const LogProbFwd fwd = {.hidden = hidden.f32(),
                          .w_panels = w.head.data(),
                          .targets = ids.data(),
                          .R = R,
                          .D = w.config.hidden_size,
                          .V = w.config.vocab_size,
                          .temperature = temperature,
                          .log_probs = log_prob.f32(),
                          .lse = lse.f32(),
                          .entropy = dentropy == nullptr ? nullptr : entropy.f32()};
  log_prob_fwd(ctx, fwd);
  Tensor dhidden = Tensor::empty(ctx, hidden.shape());
  log_prob_bwd(ctx, {.fwd = fwd,
                     .dlog_probs = dlogp.f32(),
                     .dentropy = dentropy == nullptr ? nullptr : dh.f32(),
                     .dhidden = dhidden.f32(),
                     .dw_panels = w.head.grad_or_null()});
  return dhidden;
}

/// Every rank of cp has all hidden rows and takes its share of them through the head.
struct HeadShare {
  RowRange rows;
  std::vector<int32_t> targets;
};

HeadShare head_share(const dist::Group& cp, const Tensor& hidden,
                     const std::vector<int32_t>& targets) {
  const RowRange rows = share_of_rows({0, hidden.dim(0)}, cp.rank(), cp.size());
  return {rows, {targets.begin() + rows.begin, targets.begin() + rows.end()}};
}

std::vector<float> gather_values(const dist::Group& group, const float* mine, int64_t n) {
  return group.concatenate(std::vector<float>(mine, mine + n));
}

}  // namespace

Tensor log_probs(const ExecContext& ctx, const Weights& w, const Tensor& hidden,
                 const std::vector<int32_t>& targets, float temperature, float* entropy) {
  const dist::Group& cp = w.layout.cp;
  if (cp.size() == 1) return log_probs_of_all(ctx, w, hidden, targets, temperature, entropy);
  FATHOM_ASSERT(hidden.dim(0) == static_cast<int64_t>(targets.size()), hidden.dim(0), " rows, ",
                targets.size(), " targets");
  const HeadShare share = head_share(cp, hidden, targets);
  std::vector<float> own_entropy(entropy == nullptr ? 0 : static_cast<size_t>(share.rows.count));
  const Tensor own =
      log_probs_of_all(ctx, w, hidden.rows(share.rows.begin, share.rows.end()), share.targets,
                       temperature, entropy == nullptr ? nullptr : own_entropy.data());
  const std::vector<float> all = gather_values(cp, own.f32(), own.numel());
  if (entropy != nullptr) {
    const std::vector<float> entropies = gather_values(cp, own_entropy.data(), share.rows.count);
    std::copy(entropies.begin(), entropies.end(), entropy);
  }
  Tensor out = Tensor::empty({hidden.dim(0)});
  std::copy(all.begin(), all.end(), out.f32());
  return out;
}

Tensor log_probs_backward(const ExecContext& ctx, Weights& w, const Tensor& hidden,
                          const std::vector<int32_t>& targets, float temperature,
                          const float* dlog_probs, const float* dentropy) {
  const dist::Group& cp = w.layout.cp;
  const HeadShare share = head_share(cp, hidden, targets);
  const Tensor own = backward_of_all(ctx, w, hidden.rows(share.rows.begin, share.rows.end()),
                                     share.targets, temperature, dlog_probs + share.rows.begin,
                                     dentropy == nullptr ? nullptr : dentropy + share.rows.begin);
  return gather_hidden(ctx, cp, own);
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
  if (!w.embed.grad.defined()) return;
  const RowRange rows = w.layout.stream_rows(batch.num_tokens());
  const KernelArray<int32_t> ids = ids_of_rows(ctx, batch.token_ids, rows);
  embedding_bwd(ctx, dstreams.f32(), ids.data(), rows.count, w.config.hidden_size, w.config.hc_mult,
                w.embed.grad.f32());
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
