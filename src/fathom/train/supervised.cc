#include "fathom/train/supervised.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/parallel/pipeline.h"
#include "fathom/train/balance.h"
#include "fathom/train/packing.h"

namespace fathom {
namespace {

/// The MTP block's part of one micro-batch: row t has seen token t+1 and predicts token t+2.
void run_mtp(const ExecContext& ctx, Weights& w, const std::vector<SupervisedExample>& examples,
             size_t begin, size_t end, const PackedBatch& packed, const Tensor& streams,
             double scale_per_token, std::vector<float>* all_log_probs) {
  std::vector<int32_t> next_ids, targets;
  std::vector<int64_t> rows;
  for (size_t i = begin; i < end; ++i) {
    const std::vector<int32_t>& tokens = examples[i].tokens;
    for (size_t t = 0; t + 1 < tokens.size(); ++t) {
      if (static_cast<int64_t>(t) + 2 >= examples[i].target_begin && t + 2 < tokens.size()) {
        rows.push_back(static_cast<int64_t>(next_ids.size()));
        targets.push_back(tokens[t + 2]);
      }
      next_ids.push_back(tokens[t + 1]);
    }
  }
  // Other ranks may need this one's experts even so.
  if (rows.empty() && w.layout.experts.size() == 1) return;
  Tape tape;
  const Tensor draft = mtp(ctx, w, packed.batch, streams, next_ids, &tape);
  const Tensor hidden = mtp_collapse(ctx, w, packed.batch, draft, rows);
  const Tensor log_prob = log_probs(ctx, w, hidden, targets, 1.0f);
  all_log_probs->insert(all_log_probs->end(), log_prob.f32(), log_prob.f32() + rows.size());
  const std::vector<float> dlog_probs(rows.size(), static_cast<float>(-scale_per_token));
  // The head is shared and detached here: its gradient buffer is set aside for this call.
  const Tensor head_grad = w.head.grad;
  w.head.grad = Tensor();
  const Tensor dhidden =
      log_probs_backward(ctx, w, hidden, targets, 1.0f, dlog_probs.data(), nullptr);
  w.head.grad = head_grad;
  Tensor ddraft;
  mtp_collapse_backward(ctx, w, packed.batch, draft, rows, dhidden, &ddraft);
  mtp_backward(ctx, w, packed.batch, streams, next_ids, tape, ddraft);
}

}  // namespace

SupervisedMetrics supervised_forward_backward(const ExecContext& ctx, Weights& w,
                                              const std::vector<SupervisedExample>& examples,
                                              const SupervisedOptions& options,
                                              const RankGroups& groups) {
  SupervisedMetrics metrics;
  std::vector<int64_t> lengths;
  int64_t num_mtp_tokens = 0;
  for (const SupervisedExample& e : examples) {
    const int64_t n = static_cast<int64_t>(e.tokens.size());
    lengths.push_back(n);
    metrics.num_tokens += n - e.target_begin;
    num_mtp_tokens += std::max<int64_t>(0, n - std::max<int64_t>(2, e.target_begin));
  }
  const bool with_mtp =
      !w.mtp.empty() && options.mtp_loss_scaling_factor > 0.0 && num_mtp_tokens > 0;
  const double mtp_scale =
      options.mtp_loss_scaling_factor / static_cast<double>(std::max<int64_t>(1, num_mtp_tokens));
  const std::vector<SampleRange> ranges =
      own_micro_batches(groups, lengths, options.max_tokens_per_micro_batch);
  std::vector<PackedBatch> packed;
  for (const auto& [begin, end] : ranges) {
    std::vector<PackedSequence> sequences;
    for (size_t i = begin; i < end; ++i) {
      sequences.push_back({&examples[i].tokens, examples[i].target_begin, nullptr});
    }
    packed.push_back(pack_sequences(sequences));
  }
  std::vector<float> token_log_probs, mtp_log_probs;  // of the share, in token order
  const auto head = [&](int b, const Tensor& streams) {
    const PackedBatch& p = packed[static_cast<size_t>(b)];
    const Tensor hidden = collapse(ctx, w, p.batch, streams, p.rows);
    const Tensor log_prob = log_probs(ctx, w, hidden, p.targets, 1.0f);
    token_log_probs.insert(token_log_probs.end(), log_prob.f32(), log_prob.f32() + p.rows.size());
    const std::vector<float> dlog_probs(
        p.rows.size(), static_cast<float>(-1.0 / static_cast<double>(metrics.num_tokens)));
    const Tensor dhidden =
        log_probs_backward(ctx, w, hidden, p.targets, 1.0f, dlog_probs.data(), nullptr);
    const Tensor dstreams = collapse_backward(ctx, w, p.batch, streams, p.rows, dhidden);
    if (with_mtp) {
      const auto& [begin, end] = ranges[static_cast<size_t>(b)];
      run_mtp(ctx, w, examples, begin, end, p, streams, mtp_scale, &mtp_log_probs);
    }
    return dstreams;
  };
  run_training(
      ctx, w, groups.stages,
      {.num_micro_batches = static_cast<int>(packed.size()),
       .batch = [&](int b) -> const Batch& { return packed[static_cast<size_t>(b)].batch; },
       .head = head});
  const auto of_step = [&](const std::vector<float>& of_share) {
    return groups.from_last_stage(groups.dp.concatenate(of_share));
  };
  for (float v : of_step(token_log_probs)) metrics.loss -= v;
  for (float v : of_step(mtp_log_probs)) metrics.mtp_loss -= v;
  metrics.loss /= static_cast<double>(std::max<int64_t>(1, metrics.num_tokens));
  metrics.mtp_loss /= static_cast<double>(std::max<int64_t>(1, num_mtp_tokens));
  return metrics;
}

}  // namespace fathom
