// Where a step's samples are cut into micro-batches changes no bits, and how they are dealt to
// ranks only the gradients' last ones.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "fathom/dist/local_ranks.h"
#include "fathom/train/policy_step.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

std::vector<Sample> some_samples(int64_t vocab) {
  std::vector<Sample> samples;
  int64_t index = 0;
  for (const int64_t n : {30, 7, 61, 12, 44, 9, 25, 18, 33}) {
    Sample s;
    s.index = index++;
    s.tokens = random_ids(static_cast<uint64_t>(n), n, vocab);
    s.response_length = n / 2;
    s.rollout_log_probs.assign(static_cast<size_t>(n / 2), -3.0f);
    samples.push_back(std::move(s));
  }
  return samples;
}

struct Result {
  std::map<std::string, Tensor> gradients;
  PolicyMetrics metrics;
};

/// What member 0 has after the ranks' gradients were added in rank order.
Result run(const PolicyStepOptions& options, int num_ranks) {
  Result result;
  const auto errors = dist::run_local_ranks(num_ranks, [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    Weights w = make_tiny_weights(3);
    for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
    const std::vector<Sample> samples = some_samples(w.config.vocab_size);
    std::vector<TrainSample> step;
    for (const Sample& s : samples) step.push_back({&s, s.index % 2 == 0 ? 0.7 : -0.4});
    const dist::Group all = world.everyone();
    const PolicyMetrics m = policy_forward_backward(ctx, w, step, 9.0, options, all);
    for_each_parameter(w, [&](Parameter& p) {
      if (p.grad.defined()) all.sum(p.grad.f32(), p.grad.numel());
    });
    if (world.rank() != 0) return;
    result.metrics = m;
    for_each_parameter(w, [&](Parameter& p) {
      if (p.grad.defined()) result.gradients[p.name] = p.grad.clone();
    });
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  return result;
}

PolicyStepOptions cut_by(const MicroBatchCut& cut, bool balance = false) {
  PolicyStepOptions o;
  o.micro_batches = cut;
  o.balance_samples = balance;
  return o;
}

TEST(BatchCutBits, GradientsAndMetricsDoNotDependOnTheCut) {
  const Result whole = run(cut_by({.max_tokens = 100000}), 1);
  for (const MicroBatchCut& cut :
       {MicroBatchCut{.max_tokens = 1}, MicroBatchCut{.max_tokens = 70},
        MicroBatchCut{.max_tokens = 70, .even = true}, MicroBatchCut{.num_samples = 1},
        MicroBatchCut{.num_samples = 4}}) {
    const Result other = run(cut_by(cut), 1);
    EXPECT_EQ(other.metrics.loss, whole.metrics.loss);
    ASSERT_EQ(other.gradients.size(), whole.gradients.size());
    for (const auto& [name, gradient] : whole.gradients) {
      EXPECT_EQ(std::memcmp(gradient.bytes(), other.gradients.at(name).bytes(),
                            static_cast<size_t>(gradient.num_bytes())),
                0)
          << name;
    }
  }
}

TEST(BatchCutBits, BalancedRanksHaveTheMetricsOfOneRankAndItsGradients) {
  const Result one = run(cut_by({}), 1);
  for (int num_ranks : {2, 3}) {
    const Result balanced = run(cut_by({.num_samples = 1}, true), num_ranks);
    EXPECT_EQ(balanced.metrics.loss, one.metrics.loss);
    EXPECT_EQ(balanced.metrics.train_rollout_logprob_abs_diff,
              one.metrics.train_rollout_logprob_abs_diff);
    EXPECT_EQ(balanced.metrics.num_samples, one.metrics.num_samples);
    for (const auto& [name, gradient] : one.gradients) {
      const Tensor& other = balanced.gradients.at(name);
      double difference = 0.0, norm = 0.0;
      for (int64_t i = 0; i < gradient.numel(); ++i) {
        const double g = gradient.f32()[i];
        difference += std::pow(g - other.f32()[i], 2);
        norm += g * g;
      }
      EXPECT_LE(std::sqrt(difference), 1e-5 * std::sqrt(norm)) << name;
    }
    EXPECT_EQ(run(cut_by({}, true), num_ranks).metrics.loss, balanced.metrics.loss);
  }
}

}  // namespace
}  // namespace fathom
