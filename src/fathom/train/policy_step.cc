#include "fathom/train/policy_step.h"

#include "fathom/base/error.h"
#include "fathom/parallel/pipeline.h"
#include "fathom/train/packing.h"

namespace fathom {
namespace {

PackedBatch pack_samples(const std::vector<TrainSample>& samples, size_t begin, size_t end,
                         bool replay_routes) {
  std::vector<PackedSequence> sequences;
  for (size_t i = begin; i < end; ++i) {
    const Sample& s = *samples[i].sample;
    sequences.push_back({&s.tokens, s.prompt_length(), replay_routes ? &s.replay : nullptr});
  }
  return pack_sequences(sequences);
}

/// Loss of one packed micro-batch, whose first sample is `begin`; appends the metrics of each of
/// its samples. @return the gradient of the streams.
Tensor run_head(const ExecContext& ctx, Weights& w, const std::vector<TrainSample>& samples,
                size_t begin, size_t end, const PackedBatch& packed, const Tensor& streams,
                double num_step_samples, const PolicyStepOptions& options,
                std::vector<PolicyMetrics>* metrics) {
  const float temperature = static_cast<float>(options.temperature);
  const bool with_entropy = options.observe_entropy || options.loss.entropy_coef != 0.0;
  const Tensor hidden = collapse(ctx, w, packed.batch, streams, packed.rows);
  std::vector<float> entropy(with_entropy ? packed.rows.size() : 0);
  const Tensor log_prob = log_probs(ctx, w, hidden, packed.targets, temperature,
                                    with_entropy ? entropy.data() : nullptr);

  std::vector<float> dlog_probs(packed.rows.size()), dentropy(entropy.size());
  for (size_t i = begin; i < end; ++i) {
    const Sample& s = *samples[i].sample;
    const int64_t row = packed.row_begin[i - begin];
    const std::vector<uint8_t> no_loss(static_cast<size_t>(s.response_length), 0);
    const uint8_t* mask = s.remove_sample       ? no_loss.data()
                          : s.loss_mask.empty() ? nullptr
                                                : s.loss_mask.data();
    metrics->push_back(policy_loss(options.loss,
                                   {.log_probs = log_prob.f32() + row,
                                    .old_log_probs = s.rollout_log_probs.data(),
                                    .rollout_log_probs = s.rollout_log_probs.data(),
                                    .ref_log_probs = nullptr,
                                    .entropy = with_entropy ? entropy.data() + row : nullptr,
                                    .mask = mask,
                                    .n = s.response_length,
                                    .advantage = samples[i].advantage,
                                    .num_samples = num_step_samples},
                                   dlog_probs.data() + row,
                                   with_entropy ? dentropy.data() + row : nullptr));
  }

  const bool entropy_has_gradient = options.loss.entropy_coef != 0.0;
  const Tensor dhidden =
      log_probs_backward(ctx, w, hidden, packed.targets, temperature, dlog_probs.data(),
                         entropy_has_gradient ? dentropy.data() : nullptr);
  return collapse_backward(ctx, w, packed.batch, streams, packed.rows, dhidden);
}

}  // namespace

PolicyMetrics policy_forward_backward(const ExecContext& ctx, Weights& weights,
                                      const std::vector<TrainSample>& samples,
                                      double num_step_samples, const PolicyStepOptions& options,
                                      const RankGroups& groups) {
  std::vector<int64_t> lengths;
  for (const TrainSample& t : samples) {
    check_sample(*t.sample);
    FATHOM_CHECK(
        static_cast<int64_t>(t.sample->rollout_log_probs.size()) == t.sample->response_length,
        "sample ", t.sample->index, " has no rollout log-probs, which the policy loss needs");
    lengths.push_back(static_cast<int64_t>(t.sample->tokens.size()));
  }
  const std::vector<std::vector<int64_t>> shares =
      deal_samples(lengths, groups.dp.size(), options.balance_samples);
  const std::vector<SampleRange> ranges = cut_share(groups, shares, lengths, options.micro_batches);
  std::vector<TrainSample> mine;
  for (int64_t i : shares[static_cast<size_t>(groups.dp.rank())]) {
    mine.push_back(samples[static_cast<size_t>(i)]);
  }
  std::vector<PackedBatch> packed;
  for (const auto& [begin, end] : ranges) {
    packed.push_back(pack_samples(mine, begin, end, options.replay_routes));
  }
  std::vector<PolicyMetrics> of_samples;  // of the share
  run_training(
      ctx, weights, groups.stages,
      {.num_micro_batches = static_cast<int>(packed.size()),
       .batch = [&](int b) -> const Batch& { return packed[static_cast<size_t>(b)].batch; },
       .head =
           [&](int b, const Tensor& streams) {
             const auto& [begin, end] = ranges[static_cast<size_t>(b)];
             return run_head(ctx, weights, mine, begin, end, packed[static_cast<size_t>(b)],
                             streams, num_step_samples, options, &of_samples);
           }});
  // Rank by rank, and added in sample order.
  const std::vector<PolicyMetrics> dealt =
      groups.from_last_stage(groups.dp.concatenate(of_samples));
  std::vector<const PolicyMetrics*> in_order(samples.size());
  auto next = dealt.begin();
  for (const std::vector<int64_t>& share : shares) {
    for (int64_t i : share) in_order[static_cast<size_t>(i)] = &*next++;
  }
  PolicyMetrics metrics;
  for (const PolicyMetrics* m : in_order) metrics.add(*m);
  return metrics;
}

std::vector<std::vector<float>> score_samples(const ExecContext& ctx, const Weights& weights,
                                              const std::vector<const Sample*>& samples,
                                              double temperature, const RankGroups& groups) {
  std::vector<PackedSequence> sequences;
  for (const Sample* s : samples) sequences.push_back({&s->tokens, s->prompt_length(), nullptr});
  const PackedBatch packed = pack_sequences(sequences);
  std::vector<float> all;
  run_forward(ctx, weights, groups.stages,
              {.num_micro_batches = 1,
               .batch = [&](int) -> const Batch& { return packed.batch; },
               .head =
                   [&](int, const Tensor& streams) {
                     const Tensor log_prob = log_probs(
                         ctx, weights, collapse(ctx, weights, packed.batch, streams, packed.rows),
                         packed.targets, static_cast<float>(temperature));
                     all.assign(log_prob.f32(), log_prob.f32() + log_prob.numel());
                     return Tensor();
                   }});
  all = groups.from_last_stage(std::move(all));
  std::vector<std::vector<float>> result;
  for (size_t i = 0; i < samples.size(); ++i) {
    result.emplace_back(all.begin() + packed.row_begin[i], all.begin() + packed.row_begin[i + 1]);
  }
  return result;
}

}  // namespace fathom
