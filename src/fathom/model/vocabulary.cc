#include "fathom/model/vocabulary.h"

#include <cstring>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/embedding/embedding.h"
#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/kernels/rows/rows.h"
#include "fathom/model/forward.h"
#include "fathom/model/projection.h"
#include "fathom/model/row_exchange.h"
#include "fathom/model/shard.h"
#include "fathom/numerics/kernel_array.h"

namespace fathom {
namespace {

using dist::Incoming;
using dist::Outgoing;

/// Tokens of `rows` whose ids lie in `vocabulary`, ascending.
std::vector<int64_t> tokens_in(const std::vector<int32_t>& ids, RowRange rows,
                               RowRange vocabulary) {
  std::vector<int64_t> tokens;
  for (int64_t t = rows.begin; t < rows.end(); ++t) {
    const int32_t id = ids[static_cast<size_t>(t)];
    if (id >= vocabulary.begin && id < vocabulary.end()) tokens.push_back(t);
  }
  return tokens;
}

/// The streams' rows of member `index` of tp.
RowRange streams_of(const Layout& layout, int64_t T, int index) {
  const RowRange context = layout.context_rows(T);
  return layout.sequence_parallel ? share_of_rows(context, index, layout.tp.size()) : context;
}

int64_t row_bytes(int64_t rows, int64_t width) {
  return rows * width * static_cast<int64_t>(sizeof(float));
}

/// One row of a divided table for each of the rank's stream rows.
Tensor embed_divided(const ExecContext& ctx, const Weights& w, const std::vector<int32_t>& ids) {
  const Layout& layout = w.layout;
  const dist::Group& tp = layout.tp;
  const int64_t T = static_cast<int64_t>(ids.size()), D = w.config.hidden_size;
  const RowRange mine = layout.stream_rows(T);
  const RowRange vocabulary = vocabulary_rows(w.config, layout, tp.rank());
  // What this rank has of each member's rows, and what the others have of its own.
  std::vector<Tensor> to_send(static_cast<size_t>(tp.size())), received(to_send.size());
  std::vector<std::vector<int64_t>> tokens(to_send.size());
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int i = 0; i < tp.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const std::vector<int64_t> theirs = tokens_in(ids, streams_of(layout, T, i), vocabulary);
    std::vector<int32_t> local;
    for (int64_t t : theirs) {
      local.push_back(ids[static_cast<size_t>(t)] - static_cast<int32_t>(vocabulary.begin));
    }
    to_send[at] = Tensor::empty({static_cast<int64_t>(local.size()), D});
    embedding_fwd(ctx, w.embed.data(), local.data(), to_send[at].dim(0), D, 1, to_send[at].f32());
    tokens[at] = tokens_in(ids, mine, vocabulary_rows(w.config, layout, i));
    if (i == tp.rank()) {
      received[at] = to_send[at];
      continue;
    }
    received[at] = Tensor::empty({static_cast<int64_t>(tokens[at].size()), D});
    out.push_back({i, to_send[at].bytes(), to_send[at].num_bytes()});
    in.push_back({i, received[at].bytes(), received[at].num_bytes()});
  }
  tp.exchange(out, in);
  Tensor rows = Tensor::empty({mine.count, D});
  for (size_t i = 0; i < received.size(); ++i) {
    for (size_t r = 0; r < tokens[i].size(); ++r) {
      std::memcpy(rows.f32() + (tokens[i][r] - mine.begin) * D,
                  received[i].f32() + static_cast<int64_t>(r) * D,
                  static_cast<size_t>(row_bytes(1, D)));
    }
  }
  return rows;
}

/// Gradient rows [rows, D] of the rank's streams -> those of this rank's ids, ascending by token.
Tensor rows_of_own_ids(const Weights& w, const std::vector<int32_t>& ids, const Tensor& rows,
                       std::vector<int32_t>* own_ids) {
  const Layout& layout = w.layout;
  const dist::Group& tp = layout.tp;
  const int64_t T = static_cast<int64_t>(ids.size()), D = w.config.hidden_size;
  const RowRange mine = layout.stream_rows(T);
  const auto pick = [&](const std::vector<int64_t>& tokens) {
    Tensor picked = Tensor::empty({static_cast<int64_t>(tokens.size()), D});
    for (size_t r = 0; r < tokens.size(); ++r) {
      std::memcpy(picked.f32() + static_cast<int64_t>(r) * D,
                  rows.f32() + (tokens[r] - mine.begin) * D, static_cast<size_t>(row_bytes(1, D)));
    }
    return picked;
  };
  const RowRange vocabulary = vocabulary_rows(w.config, layout, tp.rank());
  const std::vector<int64_t> own = tokens_in(ids, layout.context_rows(T), vocabulary);
  for (int64_t t : own) {
    own_ids->push_back(ids[static_cast<size_t>(t)] - static_cast<int32_t>(vocabulary.begin));
  }
  if (!layout.sequence_parallel) return pick(own);
  Tensor all = Tensor::empty({static_cast<int64_t>(own.size()), D});
  std::vector<Tensor> to_send;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  float* to = all.f32();
  for (int i = 0; i < tp.size(); ++i) {
    to_send.push_back(pick(tokens_in(ids, mine, vocabulary_rows(w.config, layout, i))));
    const auto count =
        static_cast<int64_t>(tokens_in(ids, streams_of(layout, T, i), vocabulary).size());
    if (i == tp.rank()) {
      std::memcpy(to, to_send.back().bytes(), static_cast<size_t>(to_send.back().num_bytes()));
    } else {
      out.push_back({i, to_send.back().bytes(), to_send.back().num_bytes()});
      in.push_back({i, to, row_bytes(count, D)});
    }
    to += count * D;
  }
  tp.exchange(out, in);
  return all;
}

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

/// A host array where the context computes: itself, or a copy on the device.
Tensor place(const ExecContext& ctx, const float* values, int64_t n) {
  const Tensor host = Tensor::view(const_cast<float*>(values), {n});
  return ctx.device == nullptr ? host : host.copy_to(ctx.device);
}

VocabularyColumns own_shard(const Weights& w) {
  const RowRange rows = vocabulary_rows(w.config, w.layout, w.layout.tp.rank());
  return {rows.begin, rows.count};
}

/// Log-softmax of p's rows by all ranks of tp, each over its chunks.
void log_prob_divided(const ExecContext& ctx, const Weights& w, const LogProbFwd& p) {
  const dist::Group& tp = w.layout.tp;
  const VocabularyColumns shard = own_shard(w);
  const int64_t own = num_chunks(shard, p.V);
  std::vector<SoftmaxStats> stats(static_cast<size_t>(p.R * own));
  std::vector<float> target_logits(static_cast<size_t>(p.R));
  log_prob_shard_fwd(ctx, p, shard, stats.data(), target_logits.data());
  // Side by side: each member's chunks of every row.
  const std::vector<SoftmaxStats> all = tp.concatenate(stats);
  const std::vector<float> all_targets = tp.concatenate(target_logits);
  const int64_t chunks = num_chunks({0, p.V}, p.V);
  std::vector<SoftmaxStats> merged(static_cast<size_t>(p.R * chunks));
  int64_t begin = 0, first = 0;  // in `all`, among the chunks
  for (int i = 0; i < tp.size(); ++i) {
    const RowRange columns = vocabulary_rows(w.config, w.layout, i);
    const int64_t n = num_chunks({columns.begin, columns.count}, p.V);
    for (int64_t r = 0; r < p.R; ++r) {
      std::copy_n(all.begin() + begin + r * n, n, merged.begin() + r * chunks + first);
      const int64_t y = p.targets[r];
      if (y >= columns.begin && y < columns.end()) {
        target_logits[static_cast<size_t>(r)] = all_targets[static_cast<size_t>(i * p.R + r)];
      }
    }
    begin += p.R * n;
    first += n;
  }
  log_prob_merge(ctx, p, chunks, merged.data(), target_logits.data());
}

void log_prob_of(const ExecContext& ctx, const Weights& w, const LogProbFwd& p) {
  if (w.head.is_sharded()) {
    log_prob_divided(ctx, w, p);
  } else {
    log_prob_fwd(ctx, p);
  }
}

}  // namespace

Tensor embed_tokens(const ExecContext& ctx, const Weights& w, const std::vector<int32_t>& ids,
                    int64_t copies) {
  const int64_t D = w.config.hidden_size;
  const RowRange mine = w.layout.stream_rows(static_cast<int64_t>(ids.size()));
  Tensor streams = Tensor::empty(ctx, {mine.count, copies, D});
  if (!w.embed.is_sharded()) {
    const KernelArray<int32_t> all(ctx, ids);
    embedding_fwd(ctx, w.embed.data(), all.data() + mine.begin, mine.count, D, copies,
                  streams.f32());
    return streams;
  }
  const Tensor rows = embed_divided(ctx, w, ids);
  for (int64_t i = 0; i < mine.count * copies; ++i) {
    std::memcpy(streams.f32() + i * D, rows.f32() + i / copies * D,
                static_cast<size_t>(row_bytes(1, D)));
  }
  return streams;
}

void embed_tokens_backward(const ExecContext& ctx, Weights& w, const std::vector<int32_t>& ids,
                           const Tensor& dstreams) {
  if (!w.embed.grad.defined()) return;
  const int64_t D = w.config.hidden_size, copies = dstreams.dim(1);
  const RowRange mine = w.layout.stream_rows(static_cast<int64_t>(ids.size()));
  if (!w.embed.is_sharded()) {
    const KernelArray<int32_t> all(ctx, ids);
    embedding_bwd(ctx, dstreams.f32(), all.data() + mine.begin, mine.count, D, copies,
                  w.embed.grad.f32());
    return;
  }
  const Tensor summed = Tensor::empty(ctx, {mine.count, D});
  sum_streams(ctx, mine.count, copies, D, dstreams.f32(), summed.f32());
  std::vector<int32_t> own_ids;
  const Tensor rows = rows_of_own_ids(w, ids, summed, &own_ids);
  embedding_bwd(ctx, rows.f32(), own_ids.data(), rows.dim(0), D, 1, w.embed.grad.f32());
}

Tensor logits(const ExecContext& ctx, const Weights& w, const Tensor& hidden) {
  const Tensor own = project(ctx, w.head, hidden).to_host();
  if (!w.head.is_sharded()) return own;
  const int64_t R = hidden.dim(0), V = w.config.vocab_size;
  const std::vector<float> mine(own.f32(), own.f32() + own.numel());
  const std::vector<float> all = w.layout.tp.concatenate(mine);
  Tensor result = Tensor::empty({R, V});
  const float* from = all.data();
  for (int i = 0; i < w.layout.tp.size(); ++i) {
    const RowRange columns = vocabulary_rows(w.config, w.layout, i);
    for (int64_t r = 0; r < R; ++r, from += columns.count) {
      std::copy_n(from, columns.count, result.f32() + r * V + columns.begin);
    }
  }
  return result;
}

// The ranks of cp share the rows; those of tp the columns.

Tensor log_probs(const ExecContext& ctx, const Weights& w, const Tensor& hidden,
                 const std::vector<int32_t>& targets, float temperature, float* entropy) {
  const KernelArray<int32_t> ids = check_targets(ctx, w, hidden, targets);
  const RowRange all{0, hidden.dim(0)};
  const RowRange rows = share_of_rows(all, w.layout.cp.rank(), w.layout.cp.size());
  const Tensor out = Tensor::empty(ctx, {rows.count});
  const Tensor entropies = entropy == nullptr ? Tensor() : Tensor::empty(ctx, {rows.count});
  log_prob_of(ctx, w,
              {.hidden = hidden.f32() + rows.begin * w.config.hidden_size,
               .w_panels = w.head.data(),
               .targets = ids.data() + rows.begin,
               .R = rows.count,
               .D = w.config.hidden_size,
               .V = w.config.vocab_size,
               .temperature = temperature,
               .log_probs = out.f32(),
               .lse = nullptr,
               .entropy = entropy == nullptr ? nullptr : entropies.f32()});
  if (entropy != nullptr) {
    const Tensor gathered = gather_rows_of(w.layout.cp, all, entropies);
    download_memory(ctx.device, entropy, gathered.bytes(),
                    static_cast<size_t>(gathered.num_bytes()));
  }
  return gather_rows_of(w.layout.cp, all, out).to_host();
}

Tensor log_probs_backward(const ExecContext& ctx, Weights& w, const Tensor& hidden,
                          const std::vector<int32_t>& targets, float temperature,
                          const float* dlog_probs, const float* dentropy) {
  const int64_t D = w.config.hidden_size;
  const KernelArray<int32_t> ids = check_targets(ctx, w, hidden, targets);
  const RowRange all{0, hidden.dim(0)};
  const RowRange rows = share_of_rows(all, w.layout.cp.rank(), w.layout.cp.size());
  const int64_t R = rows.count;
  const Tensor log_prob = Tensor::empty(ctx, {R}), lse = Tensor::empty(ctx, {R});
  const Tensor entropy = Tensor::empty(ctx, {R});
  const Tensor dlogp = place(ctx, dlog_probs + rows.begin, R);
  const Tensor dh = dentropy == nullptr ? Tensor() : place(ctx, dentropy + rows.begin, R);
  const LogProbFwd fwd = {.hidden = hidden.f32() + rows.begin * D,
                          .w_panels = w.head.data(),
                          .targets = ids.data() + rows.begin,
                          .R = R,
                          .D = D,
                          .V = w.config.vocab_size,
                          .temperature = temperature,
                          .log_probs = log_prob.f32(),
                          .lse = lse.f32(),
                          .entropy = dentropy == nullptr ? nullptr : entropy.f32()};
  log_prob_of(ctx, w, fwd);
  Tensor dhidden = Tensor::empty(ctx, {R, D});
  const LogProbBwd bwd = {.fwd = fwd,
                          .dlog_probs = dlogp.f32(),
                          .dentropy = dentropy == nullptr ? nullptr : dh.f32(),
                          .dhidden = dhidden.f32(),
                          .dw_panels = w.head.grad_or_null()};
  if (w.head.is_sharded()) {
    log_prob_shard_bwd(ctx, bwd, own_shard(w));
    w.layout.tp.sum(dhidden.f32(), dhidden.numel(), dist::SumOrder::kTree);
  } else {
    log_prob_bwd(ctx, bwd);
  }
  return gather_rows_of(w.layout.cp, all, dhidden);
}

}  // namespace fathom
