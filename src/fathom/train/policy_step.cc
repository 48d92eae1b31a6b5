#include "fathom/train/policy_step.h"

#include "fathom/base/error.h"
#include "fathom/train/packing.h"

namespace fathom {
namespace {

/// Loss and gradients of one packed micro-batch; appends the metrics of each of its samples.
void run_micro_batch(const ExecContext& ctx, Weights& w, const std::vector<TrainSample>& samples,
                     size_t begin, size_t end, double num_step_samples,
                     const PolicyStepOptions& options, std::vector<PolicyMetrics>* metrics) {
  std::vector<PackedSequence> sequences;
  for (size_t i = begin; i < end; ++i) {
    const Sample& s = *samples[i].sample;
    sequences.push_back(
        {&s.tokens, s.prompt_length(), options.replay_routes ? &s.replay : nullptr});
  }
  const PackedBatch packed = pack_sequences(sequences);
  const float temperature = static_cast<float>(options.temperature);
  const bool with_entropy = options.observe_entropy || options.loss.entropy_coef != 0.0;

  Tape tape;
  const Tensor streams = forward_layers(ctx, w, packed.batch, embed(ctx, w, packed.batch), &tape);
  const Tensor hidden = collapse(ctx, w, streams, packed.rows);
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
  const Tensor dstreams = collapse_backward(ctx, w, streams, packed.rows, dhidden);
  embed_backward(ctx, w, packed.batch, backward_layers(ctx, w, packed.batch, tape, dstreams));
}

}  // namespace

PolicyMetrics policy_forward_backward(const ExecContext& ctx, Weights& weights,
                                      const std::vector<TrainSample>& samples,
                                      double num_step_samples, const PolicyStepOptions& options,
                                      const dist::Group& group) {
  std::vector<int64_t> lengths;
  for (const TrainSample& t : samples) {
    check_sample(*t.sample);
    FATHOM_CHECK(
        static_cast<int64_t>(t.sample->rollout_log_probs.size()) == t.sample->response_length,
        "sample ", t.sample->index, " has no rollout log-probs, which the policy loss needs");
    lengths.push_back(static_cast<int64_t>(t.sample->tokens.size()));
  }
  const std::vector<std::vector<int64_t>> shares =
      deal_samples(lengths, group.size(), options.balance_samples);
  std::vector<TrainSample> mine;
  std::vector<int64_t> my_lengths;
  for (int64_t i : shares[static_cast<size_t>(group.rank())]) {
    mine.push_back(samples[static_cast<size_t>(i)]);
    my_lengths.push_back(lengths[static_cast<size_t>(i)]);
  }
  const std::vector<int64_t> borders = cut_samples(my_lengths, options.micro_batches);
  std::vector<PolicyMetrics> of_samples;  // of the share
  for (size_t b = 0; b + 1 < borders.size(); ++b) {
    run_micro_batch(ctx, weights, mine, static_cast<size_t>(borders[b]),
                    static_cast<size_t>(borders[b + 1]), num_step_samples, options, &of_samples);
  }
  // Rank by rank, and added in sample order.
  const std::vector<PolicyMetrics> dealt = group.concatenate(of_samples);
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
                                              double temperature) {
  std::vector<PackedSequence> sequences;
  for (const Sample* s : samples) sequences.push_back({&s->tokens, s->prompt_length(), nullptr});
  const PackedBatch packed = pack_sequences(sequences);
  const Tensor streams =
      forward_layers(ctx, weights, packed.batch, embed(ctx, weights, packed.batch));
  const Tensor log_prob = log_probs(ctx, weights, collapse(ctx, weights, streams, packed.rows),
                                    packed.targets, static_cast<float>(temperature));
  std::vector<std::vector<float>> result;
  for (size_t i = 0; i < samples.size(); ++i) {
    result.emplace_back(log_prob.f32() + packed.row_begin[i],
                        log_prob.f32() + packed.row_begin[i + 1]);
  }
  return result;
}

}  // namespace fathom
