#include "fathom/train/score.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/model/sequence_state.h"
#include "fathom/parallel/data_parallel.h"
#include "fathom/parallel/model_parts.h"
#include "fathom/train/packing.h"
#include "fathom/train/supervised.h"

namespace fathom {
namespace {

std::vector<int32_t> parse_token_line(const std::string& line, const std::string& origin,
                                      const ModelConfig& config) {
  const Json json = parse_json(line, origin);
  FATHOM_CHECK(json.is_object() && json.contains("token_ids") && json["token_ids"].is_array(),
               origin, ": needs {\"token_ids\": [...]}, got \"", line.substr(0, 80),
               "\"\n  fix: one such object a line");
  std::vector<int32_t> ids;
  for (const Json& id : json["token_ids"]) {
    FATHOM_CHECK(id.is_number_integer(), origin, ": token_ids holds ", id.dump(),
                 ", which is no integer\n  fix: list token ids");
    const int64_t value =
        id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX ? INT64_MAX : id.get<int64_t>();
    FATHOM_CHECK(value >= 0 && value < config.vocab_size, origin, ": token id ", id.dump(),
                 " is outside the vocabulary of ", config.vocab_size,
                 "\n  fix: tokenize with this model's tokenizer");
    ids.push_back(static_cast<int32_t>(value));
  }
  FATHOM_CHECK(!ids.empty(), origin, ": token_ids is empty\n  fix: give at least one token");
  FATHOM_CHECK(static_cast<int64_t>(ids.size()) <= config.max_position_embeddings, origin, ": ",
               ids.size(), " tokens, the model's max_position_embeddings is ",
               config.max_position_embeddings);
  return ids;
}

int64_t state_page_size(const ModelConfig& config) {
  int64_t page = 16;
  for (int64_t ratio : config.compress_ratios) {
    if (ratio > 0) page = std::lcm(page, ratio);
  }
  return page;
}

/// Forwards of nothing, for the ranks that need this one's experts meanwhile.
void enter_empty_mtp(const ExecContext& ctx, const Weights& w) {
  mtp(ctx, w, Batch(), embed(ctx, w, Batch()), {});
}
void enter_empty_forward(const ExecContext& ctx, const Weights& w, bool with_mtp) {
  forward_layers(ctx, w, Batch(), embed(ctx, w, Batch()));
  if (with_mtp) enter_empty_mtp(ctx, w);
}

int64_t num_chunks_of(const std::vector<int64_t>& lengths, std::pair<size_t, size_t> share,
                      int64_t chunk_tokens) {
  int64_t n = 0;
  for (size_t i = share.first; i < share.second; ++i) {
    n += (lengths[i] + chunk_tokens - 1) / chunk_tokens;
  }
  return n;
}

/// One sequence through the cached forward, chunk by chunk.
void score_sequence(const ExecContext& ctx, const Weights& w, const std::vector<int32_t>& ids,
                    size_t index, const ScoreOptions& options, NamedTensors* out) {
  const int64_t n = static_cast<int64_t>(ids.size()), V = w.config.vocab_size;
  Tensor log_prob = Tensor::empty({n - 1});
  Tensor all_logits = options.with_logits ? Tensor::empty({n, V}) : Tensor();
  Tensor mtp_logits = options.with_mtp ? Tensor::empty({n - 1, V}) : Tensor();
  // Ranks that share the rows of a batch take a sequence whole.
  const bool with_state = w.layout.cp.size() == 1;
  const int64_t chunk = with_state ? options.chunk_tokens : n;
  std::optional<SequenceState> state;
  if (with_state) state.emplace(w.config, state_page_size(w.config), w.precision(), ctx.device);
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t end = std::min(n, begin + chunk);
    Batch batch;
    batch.token_ids.assign(ids.begin() + begin, ids.begin() + end);
    Segment segment;
    segment.start_pos = begin;
    segment.num_tokens = end - begin;
    segment.state = with_state ? &*state : nullptr;
    batch.segments.push_back(segment);
    const Tensor streams = forward_layers(ctx, w, batch, embed(ctx, w, batch));

    std::vector<int64_t> rows;
    std::vector<int32_t> next;
    for (int64_t t = begin; t < end; ++t) {
      rows.push_back(t - begin);
      if (t + 1 < n) next.push_back(ids[static_cast<size_t>(t + 1)]);
    }
    const Tensor hidden = collapse(ctx, w, batch, streams, rows);
    const int64_t num_predicted = static_cast<int64_t>(next.size());
    if (num_predicted > 0) {
      const Tensor piece = log_probs(ctx, w, hidden.rows(0, num_predicted), next, 1.0f);
      std::memcpy(log_prob.f32() + begin, piece.f32(), static_cast<size_t>(piece.num_bytes()));
    }
    if (options.with_logits) {
      const Tensor piece = logits(ctx, w, hidden);
      std::memcpy(all_logits.f32() + begin * V, piece.f32(),
                  static_cast<size_t>(piece.num_bytes()));
    }
    if (options.with_mtp && num_predicted == 0) {
      if (w.layout.experts.size() > 1) enter_empty_mtp(ctx, w);
    } else if (options.with_mtp) {
      // The last row of the sequence has no next token: a repeated id fills its place and the row
      // is dropped; no earlier row can see it.
      std::vector<int32_t> next_ids = next;
      next_ids.resize(static_cast<size_t>(end - begin), next.back());
      const Tensor draft = mtp(ctx, w, batch, streams, next_ids);
      rows.resize(static_cast<size_t>(num_predicted));
      const Tensor piece = logits(ctx, w, mtp_collapse(ctx, w, batch, draft, rows));
      std::memcpy(mtp_logits.f32() + begin * V, piece.f32(),
                  static_cast<size_t>(piece.num_bytes()));
    }
  }
  out->emplace_back(str_cat("logprobs.", index), log_prob);
  if (options.with_logits) out->emplace_back(str_cat("logits.", index), all_logits);
  if (options.with_mtp) out->emplace_back(str_cat("mtp_logits.", index), mtp_logits);
}

void score_gradients(const ExecContext& ctx, Weights& w,
                     const std::vector<std::vector<int32_t>>& sequences, const RankGroups& groups,
                     NamedTensors* out) {
  std::vector<SupervisedExample> examples;
  for (const auto& ids : sequences) {
    if (ids.size() >= 2) examples.push_back({ids, 1});
  }
  std::vector<Parameter*> with_gradient;
  for (Parameter* p : parameters_by_name(w)) {
    if (p->name.starts_with("mtp.")) continue;
    p->alloc_grad();
    p->zero_grad();
    if (p->grad.defined()) with_gradient.push_back(p);
  }
  const SupervisedMetrics metrics =
      supervised_forward_backward(ctx, w, examples, {.mtp_loss_scaling_factor = 0.0}, groups);
  sum_gradients(groups, with_gradient, std::vector<int>(with_gradient.size(), 0));
  Tensor loss = Tensor::empty({1});
  loss.f32()[0] = static_cast<float>(metrics.loss);
  out->emplace_back("loss", loss);
  gather_parameters(
      groups, w, [](const Parameter& p) { return p.grad.defined(); },
      [](const Parameter& p) { return p.grad; },
      [&](const Parameter& p, const Tensor& grad) { out->emplace_back("grad." + p.name, grad); });
}

/// fp32 tensors of all members, member by member, on member 0; nothing on the others.
NamedTensors gather_at_first(const dist::Group& group, NamedTensors mine) {
  if (group.size() == 1) return mine;
  Json list = Json::array();
  for (const auto& [name, tensor] : mine)
    list.push_back({{"name", name}, {"shape", tensor.shape()}});
  const std::vector<std::string> lists = group.all_gather(list.dump());
  if (group.rank() != 0) {
    for (const auto& [name, tensor] : mine) group.send(0, tensor.f32(), tensor.num_bytes());
    return {};
  }
  for (int member = 1; member < group.size(); ++member) {
    for (const Json& entry : parse_json(lists[static_cast<size_t>(member)], "a rank's results")) {
      Tensor tensor = Tensor::empty(entry.at("shape").get<std::vector<int64_t>>());
      group.receive(member, tensor.f32(), tensor.num_bytes());
      mine.emplace_back(entry.at("name").get<std::string>(), tensor);
    }
  }
  return mine;
}

}  // namespace

std::vector<std::vector<int32_t>> read_token_lines(const std::string& path,
                                                   const ModelConfig& config) {
  std::string text = read_file(path);
  text.erase(text.find_last_not_of(" \t\r\n") + 1);
  std::vector<std::vector<int32_t>> sequences;
  int64_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    // Sequence i is line i: an empty line between others would shift the numbers.
    FATHOM_CHECK(line.find_first_not_of(" \t\r") != std::string::npos, path, " line ", line_number,
                 ": is empty\n  fix: remove it");
    sequences.push_back(parse_token_line(line, str_cat(path, " line ", line_number), config));
  }
  FATHOM_CHECK(!sequences.empty(), path,
               ": holds no lines; needs one {\"token_ids\": [...]} a line");
  return sequences;
}

NamedTensors score(const ExecContext& ctx, Weights& weights,
                   const std::vector<std::vector<int32_t>>& sequences, const ScoreOptions& options,
                   const RankGroups& groups) {
  FATHOM_CHECK(!options.with_mtp || !weights.mtp.empty(),
               "score: --with-mtp needs a model with an MTP block, this one has none\n"
               "  fix: leave --with-mtp out, or load a checkpoint with mtp.* tensors");
  NamedTensors out;
  std::vector<int64_t> lengths;
  for (const auto& ids : sequences) lengths.push_back(static_cast<int64_t>(ids.size()));
  const auto share_of_member = [&](int member) {
    return share_of(member, groups.dp.size(), lengths);
  };
  const auto share = share_of_member(groups.dp.rank());
  for (size_t i = share.first; i < share.second; ++i) {
    score_sequence(ctx, weights, sequences[i], i, options, &out);
  }
  if (groups.shares_experts_over_dp()) {
    const auto num_chunks = [&](int member) {
      return num_chunks_of(lengths, share_of_member(member),
                           groups.shape.cp == 1 ? options.chunk_tokens : INT64_MAX / 2);
    };
    int64_t most = 0;
    for (int m = 0; m < groups.dp.size(); ++m) most = std::max(most, num_chunks(m));
    for (int64_t i = num_chunks(groups.dp.rank()); i < most; ++i) {
      enter_empty_forward(ctx, weights, options.with_mtp);
    }
  }
  out = gather_at_first(groups.dp, std::move(out));
  if (groups.everyone.rank() != 0) out.clear();  // the other ranks of its tp have them too
  if (options.with_gradients) score_gradients(ctx, weights, sequences, groups, &out);
  return out;
}

}  // namespace fathom
