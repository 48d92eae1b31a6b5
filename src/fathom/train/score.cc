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
#include "fathom/parallel/pipeline.h"
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

/// Sequences on their way through the cached forward, chunk by chunk. With context parallelism,
/// which has no states, a chunk is a whole sequence.
class SequenceScores {
 public:
  SequenceScores(const ExecContext& ctx, const Weights& w,
                 const std::vector<std::vector<int32_t>>& sequences, const ScoreOptions& options)
      : ctx_(ctx), w_(w), sequences_(sequences), options_(options) {}

  /// This rank's share of the sequences. @return on the last stage their tensors.
  NamedTensors run(const RankGroups& groups, const std::vector<int64_t>& lengths) {
    const int members = groups.dp.size();
    chunks_ = chunks_of(share_of(groups.dp.rank(), members, lengths));
    if (groups.shares_experts_over_dp()) {
      // Forwards of nothing, for the ranks that need this one's experts meanwhile.
      size_t most = 0;
      for (int m = 0; m < members; ++m) {
        most = std::max(most, chunks_of(share_of(m, members, lengths)).size());
      }
      chunks_.resize(most);
    }
    run_forward(ctx_, w_, groups.stages,
                {.num_micro_batches = static_cast<int>(chunks_.size()),
                 .batch = [&](int c) -> const Batch& { return batch_of(c); },
                 .head =
                     [&](int c, const Tensor& streams) {
                       const Chunk& chunk = chunks_[static_cast<size_t>(c)];
                       if (chunk.end > chunk.begin) {
                         read_chunk(chunk, batch_of(c), streams);
                       } else if (options_.with_mtp) {
                         enter_empty_mtp();
                       }
                       return Tensor();
                     }});
    return std::move(out_);
  }

 private:
  struct Chunk {
    size_t sequence = 0;
    int64_t begin = 0, end = 0;  // empty: nothing, computed for others
  };

  std::vector<Chunk> chunks_of(std::pair<size_t, size_t> share) const {
    std::vector<Chunk> chunks;
    for (size_t i = share.first; i < share.second; ++i) {
      const int64_t n = length(i), step = w_.layout.cp.size() > 1 ? n : options_.chunk_tokens;
      for (int64_t at = 0; at < n; at += step) chunks.push_back({i, at, std::min(n, at + step)});
    }
    return chunks;
  }

  void enter_empty_mtp() const { mtp(ctx_, w_, Batch(), embed(ctx_, w_, Batch()), {}); }

  int64_t length(size_t i) const { return static_cast<int64_t>(sequences_[i].size()); }

  const Batch& batch_of(int c) {
    if (c == current_) return batch_;
    current_ = c;
    const Chunk& chunk = chunks_[static_cast<size_t>(c)];
    if (chunk.begin == chunk.end) return batch_ = Batch();
    const std::vector<int32_t>& ids = sequences_[chunk.sequence];
    Segment segment;
    segment.start_pos = chunk.begin;
    segment.num_tokens = chunk.end - chunk.begin;
    if (w_.layout.cp.size() == 1) {
      if (chunk.begin == 0) {
        state_.emplace(w_.config, state_page_size(w_.config), w_.precision(), ctx_.device);
      }
      segment.state = &*state_;
    }
    batch_.token_ids.assign(ids.begin() + chunk.begin, ids.begin() + chunk.end);
    batch_.segments = {segment};
    return batch_;
  }

  void read_chunk(const Chunk& chunk, const Batch& batch, const Tensor& streams);

  const ExecContext& ctx_;
  const Weights& w_;
  const std::vector<std::vector<int32_t>>& sequences_;
  const ScoreOptions& options_;
  std::vector<Chunk> chunks_;
  int current_ = -1;
  Batch batch_;                            // of the current chunk
  std::optional<SequenceState> state_;     // of its sequence
  Tensor log_prob_, logits_, mtp_logits_;  // of its sequence
  NamedTensors out_;
};

void SequenceScores::read_chunk(const Chunk& chunk, const Batch& batch, const Tensor& streams) {
  const std::vector<int32_t>& ids = sequences_[chunk.sequence];
  const int64_t n = length(chunk.sequence), V = w_.config.vocab_size;
  const int64_t begin = chunk.begin, end = chunk.end;
  if (begin == 0) {
    log_prob_ = Tensor::empty({n - 1});
    if (options_.with_logits) logits_ = Tensor::empty({n, V});
    if (options_.with_mtp) mtp_logits_ = Tensor::empty({n - 1, V});
  }
  std::vector<int64_t> rows;
  std::vector<int32_t> next;
  for (int64_t t = begin; t < end; ++t) {
    rows.push_back(t - begin);
    if (t + 1 < n) next.push_back(ids[static_cast<size_t>(t + 1)]);
  }
  const Tensor hidden = collapse(ctx_, w_, batch, streams, rows);
  const int64_t num_predicted = static_cast<int64_t>(next.size());
  if (num_predicted > 0) {
    const Tensor piece = log_probs(ctx_, w_, hidden.rows(0, num_predicted), next, 1.0f);
    std::memcpy(log_prob_.f32() + begin, piece.f32(), static_cast<size_t>(piece.num_bytes()));
  }
  if (options_.with_logits) {
    const Tensor piece = logits(ctx_, w_, hidden);
    std::memcpy(logits_.f32() + begin * V, piece.f32(), static_cast<size_t>(piece.num_bytes()));
  }
  if (options_.with_mtp && num_predicted == 0) {
    if (w_.layout.experts.size() > 1) enter_empty_mtp();
  } else if (options_.with_mtp) {
    // The last row of the sequence has no next token: a repeated id fills its place and the row
    // is dropped; no earlier row can see it.
    std::vector<int32_t> next_ids = next;
    next_ids.resize(static_cast<size_t>(end - begin), next.back());
    const Tensor draft = mtp(ctx_, w_, batch, streams, next_ids);
    rows.resize(static_cast<size_t>(num_predicted));
    const Tensor piece = logits(ctx_, w_, mtp_collapse(ctx_, w_, batch, draft, rows));
    std::memcpy(mtp_logits_.f32() + begin * V, piece.f32(), static_cast<size_t>(piece.num_bytes()));
  }
  if (end < n) return;
  out_.emplace_back(str_cat("logprobs.", chunk.sequence), log_prob_);
  if (options_.with_logits) out_.emplace_back(str_cat("logits.", chunk.sequence), logits_);
  if (options_.with_mtp) out_.emplace_back(str_cat("mtp_logits.", chunk.sequence), mtp_logits_);
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
    if (p->name.starts_with("mtp.") || is_embedding_copy(w, *p)) continue;
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
  FATHOM_CHECK(!options.with_mtp || !weights.mtp.empty() || !weights.layout.is_last_stage,
               "score: --with-mtp needs a model with an MTP block, this one has none\n"
               "  fix: leave --with-mtp out, or load a checkpoint with mtp.* tensors");
  std::vector<int64_t> lengths;
  for (const auto& ids : sequences) lengths.push_back(static_cast<int64_t>(ids.size()));
  NamedTensors out = SequenceScores(ctx, weights, sequences, options).run(groups, lengths);
  // Of ranks that have the same, the first tells.
  const Layout& layout = weights.layout;
  if (!layout.is_last_stage || layout.tp.rank() != 0 || layout.cp.rank() != 0) out.clear();
  out = gather_at_first(groups.everyone, std::move(out));
  if (options.with_gradients) score_gradients(ctx, weights, sequences, groups, &out);
  return out;
}

}  // namespace fathom
