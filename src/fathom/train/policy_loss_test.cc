#include "fathom/train/policy_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "fathom/train/advantage.h"
#include "fathom/train/lr_schedule.h"
#include "fathom/train/packing.h"

namespace fathom {
namespace {

struct Case {
  PolicyLossOptions options;
  std::vector<float> log_probs, old, rollout;
  std::vector<uint8_t> mask;
  double advantage = 1.0, num_samples = 4.0;

  PolicyMetrics run(std::vector<float>* gradient) const {
    gradient->assign(log_probs.size(), 7.0f);
    return policy_loss(options,
                       {.log_probs = log_probs.data(),
                        .old_log_probs = old.data(),
                        .rollout_log_probs = rollout.data(),
                        .ref_log_probs = nullptr,
                        .entropy = nullptr,
                        .mask = mask.empty() ? nullptr : mask.data(),
                        .n = static_cast<int64_t>(log_probs.size()),
                        .advantage = advantage,
                        .num_samples = num_samples},
                       gradient->data(), nullptr);
  }
};

TEST(PolicyLossTest,
     OnPolicyLossIsMinusAdvantageAndItsGradientIsMinusAdvantageOverTokensAndSamples) {
  Case c;
  c.log_probs = c.old = c.rollout = {-1.0f, -0.5f, -2.0f};
  c.advantage = 0.75;
  std::vector<float> gradient;
  const PolicyMetrics m = c.run(&gradient);
  EXPECT_DOUBLE_EQ(m.pg_loss, -0.75);
  EXPECT_EQ(m.train_rollout_logprob_abs_diff, 0.0);
  EXPECT_EQ(m.ppo_kl, 0.0);
  EXPECT_DOUBLE_EQ(m.ess_ratio, 1.0);
  for (float g : gradient) EXPECT_FLOAT_EQ(g, -0.75f / 3.0f / 4.0f);
}

TEST(PolicyLossTest, ARolloutLogProbThatDiffersByOneUlpIsSeen) {
  Case c;
  c.log_probs = c.old = c.rollout = {-1.0f, -0.5f};
  c.rollout[1] = std::nextafter(-0.5f, 0.0f);
  std::vector<float> gradient;
  EXPECT_GT(c.run(&gradient).train_rollout_logprob_abs_diff, 0.0);
}

TEST(PolicyLossTest, GradientAgreesWithCentralDifferencesOnBothSidesOfTheClip) {
  for (double advantage : {1.0, -1.0}) {
    for (float shift : {-0.5f, -0.1f, 0.1f, 0.5f}) {
      Case c;
      c.options.eps_clip = 0.2;
      c.options.eps_clip_high = 0.28;
      c.old = c.rollout = {-1.0f};
      c.advantage = advantage;
      const float h = 1e-3f;
      std::vector<float> gradient, ignored;
      c.log_probs = {-1.0f + shift + h};
      const double up = c.run(&ignored).loss;
      c.log_probs = {-1.0f + shift - h};
      const double down = c.run(&ignored).loss;
      c.log_probs = {-1.0f + shift};
      c.run(&gradient);
      // loss is per sample; the gradient carries 1/N.
      EXPECT_NEAR(gradient[0] * c.num_samples, (up - down) / (2.0 * h), 2e-3)
          << "A " << advantage << " shift " << shift;
    }
  }
}

TEST(PolicyLossTest, TheDualClipBoundsTheLossOfABadSample) {
  Case c;
  c.options.eps_clip_c = 3.0;
  c.old = c.rollout = {-5.0f};
  c.log_probs = {-1.0f};  // ratio e^4
  c.advantage = -2.0;
  std::vector<float> gradient;
  EXPECT_DOUBLE_EQ(c.run(&gradient).pg_loss, 6.0);
  EXPECT_EQ(gradient[0], 0.0f);
}

TEST(PolicyLossTest, MaskedTokensCountForNothing) {
  Case c;
  c.log_probs = c.old = c.rollout = {-1.0f, -0.5f, -2.0f};
  c.rollout[1] = -9.0f;
  c.mask = {1, 0, 1};
  std::vector<float> gradient;
  const PolicyMetrics m = c.run(&gradient);
  EXPECT_EQ(gradient[1], 0.0f);
  EXPECT_FLOAT_EQ(gradient[0], -1.0f / 2.0f / 4.0f);
  EXPECT_EQ(m.train_rollout_logprob_abs_diff, 0.0);
}

TEST(KlEstimateTest, GradientsAgreeWithCentralDifferences) {
  for (KlType type : {KlType::kK1, KlType::kK2, KlType::kK3, KlType::kLowVar}) {
    for (double lr : {-1.5, -0.2, 0.0, 0.3, 2.0}) {
      const double h = 1e-2;
      const double slope =
          (kl_estimate(type, lr + h).value - kl_estimate(type, lr - h).value) / (2 * h);
      EXPECT_NEAR(kl_estimate(type, lr).gradient, slope, 2e-4 * (1.0 + std::fabs(slope)));
    }
  }
}

TEST(AdvantageTest, GroupsAreCentredAndScaledBySampleDeviation) {
  const auto a = grpo_advantages({1, 0, 0, 0}, true);
  EXPECT_NEAR(a[0], 0.75 / (0.5 + 1e-6), 1e-12);
  EXPECT_NEAR(a[1], -0.25 / (0.5 + 1e-6), 1e-12);
  EXPECT_EQ(grpo_advantages({1, 0}, false), (std::vector<double>{0.5, -0.5}));
}

TEST(AdvantageTest, EqualRewardsAndSingleSamplesGiveZero) {
  EXPECT_EQ(grpo_advantages({1, 1, 1}, true), (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(grpo_advantages({3}, true), (std::vector<double>{0}));
  EXPECT_FALSE(has_reward_spread({1, 1}));
  EXPECT_FALSE(has_reward_spread({1}));
  EXPECT_TRUE(has_reward_spread({1, 0}));
}

TEST(LrScheduleTest, WarmsUpThenDecaysToTheFloor) {
  LrScheduleOptions o{.lr = 1.0,
                      .min_lr = 0.05,
                      .style = LrDecayStyle::kLinear,
                      .warmup_steps = 3,
                      .total_steps = 60};
  EXPECT_NEAR(learning_rate(o, 0), 1.0 / 3.0, 1e-12);
  EXPECT_NEAR(learning_rate(o, 2), 1.0, 1e-12);
  EXPECT_NEAR(learning_rate(o, 3), 1.0, 1e-12);
  EXPECT_NEAR(learning_rate(o, 59), 0.05, 1e-12);
  EXPECT_NEAR(learning_rate(o, 500), 0.05, 1e-12);
  o.style = LrDecayStyle::kCosine;
  EXPECT_NEAR(learning_rate(o, 59), 0.05, 1e-12);
  EXPECT_NEAR(learning_rate(o, 31), 0.525, 1e-12);
  o.style = LrDecayStyle::kConstant;
  EXPECT_EQ(learning_rate(o, 59), 1.0);
}

TEST(PackingTest, RowsPointAtTheTokenBeforeEachTarget) {
  const std::vector<int32_t> a = {5, 6, 7}, b = {8, 9};
  const PackedBatch packed = pack_sequences({{&a, 2}, {&b, 1}});
  EXPECT_EQ(packed.batch.token_ids, (std::vector<int32_t>{5, 6, 8}));
  EXPECT_EQ(packed.rows, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(packed.targets, (std::vector<int32_t>{7, 9}));
  EXPECT_EQ(packed.row_begin, (std::vector<int64_t>{0, 1, 2}));
}

TEST(PackingTest, MicroBatchesCoverEverySampleOnce) {
  EXPECT_EQ(cut_micro_batches({4, 4, 4, 20, 1}, 10), (std::vector<int64_t>{0, 2, 3, 4, 5}));
  EXPECT_EQ(cut_micro_batches({4}, 1), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(cut_micro_batches({}, 1), (std::vector<int64_t>{0}));
}

}  // namespace
}  // namespace fathom
