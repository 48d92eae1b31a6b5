#include "fathom/rl/sample_metrics.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

double value_of(const MetricList& metrics, const std::string& name) {
  for (const auto& [key, value] : metrics) {
    if (key == name) return value;
  }
  ADD_FAILURE() << name << " is missing";
  return 0.0;
}

TEST(SampleMetricsTest, LengthsCountTheTokensThatTheLossSees) {
  Sample whole, masked, removed;
  whole.response_length = masked.response_length = removed.response_length = 4;
  masked.loss_mask = {1, 0, 0, 1};
  masked.status = SampleStatus::kTruncated;
  removed.remove_sample = true;
  MetricList metrics;
  add_sample_metrics("rollout", {&whole, &masked, &removed}, &metrics);
  EXPECT_EQ(value_of(metrics, "rollout/response_len/mean"), 2.0);
  EXPECT_EQ(value_of(metrics, "rollout/response_len/median"), 2.0);
  EXPECT_EQ(value_of(metrics, "rollout/response_len/max"), 4.0);
  EXPECT_EQ(value_of(metrics, "rollout/response_len/min"), 0.0);
  EXPECT_NEAR(value_of(metrics, "rollout/truncated_ratio"), 1.0 / 3.0, 1e-12);
}

TEST(SampleMetricsTest, NoSamplesGiveZeros) {
  MetricList metrics;
  add_sample_metrics("eval/x", {}, &metrics);
  EXPECT_EQ(value_of(metrics, "eval/x/response_len/mean"), 0.0);
}

TEST(SampleMetricsTest, PassAtKIsTheUnbiasedEstimate) {
  EXPECT_EQ(pass_at_k(8, 0, 4), 0.0);
  EXPECT_EQ(pass_at_k(8, 8, 1), 1.0);
  EXPECT_NEAR(pass_at_k(8, 2, 1), 0.25, 1e-12);
  EXPECT_NEAR(pass_at_k(4, 2, 2), 1.0 - 1.0 / 6.0, 1e-12);  // 1 of 6 pairs is all wrong
  EXPECT_EQ(pass_at_k(4, 3, 2), 1.0);
}

TEST(SampleMetricsTest, OnlyLongRepeatedTextIsRepetitive) {
  EXPECT_FALSE(is_repetitive(std::string(9000, 'a')));
  EXPECT_TRUE(is_repetitive(std::string(20000, 'a')));
  std::string text;
  uint32_t state = 1;
  while (text.size() < 20000) {
    state = state * 1664525u + 1013904223u;
    text.push_back(static_cast<char>('a' + (state >> 24) % 26));
  }
  EXPECT_FALSE(is_repetitive(text));
}

}  // namespace
}  // namespace fathom
