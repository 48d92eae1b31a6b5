// min_p, penalties, biases, bans and lists: what changes a row before or beside the draw.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/rollout/sampler.h"

namespace fathom {
namespace {

DrawnToken draw_one(const ExecContext& ctx, const std::vector<float>& logits,
                    const SamplingParams& params, uint64_t seed, int64_t position) {
  Sampler sampler;
  const Draw draw{logits.data(), &params, seed, position};
  DrawnToken token{};
  sampler.sample(ctx, static_cast<int64_t>(logits.size()), {&draw, 1}, {&token, 1});
  return token;
}

/// adjust_logits from its definition, in the order that it states.
std::vector<float> adjusted(const std::vector<float>& logits, const SamplingParams& p,
                            const std::vector<int32_t>& generated,
                            const std::vector<int32_t>& forbidden) {
  std::vector<float> z = logits;
  for (size_t c = 0; c < z.size(); ++c) {
    const auto n = std::count(generated.begin(), generated.end(), static_cast<int32_t>(c));
    if (n > 0) {
      z[c] = (z[c] - p.frequency_penalty * static_cast<float>(n)) - p.presence_penalty;
      z[c] = z[c] > 0 ? z[c] / p.repetition_penalty : z[c] * p.repetition_penalty;
    }
    for (const auto& [id, bias] : p.logit_bias) z[c] += static_cast<size_t>(id) == c ? bias : 0.0f;
    if (std::count(forbidden.begin(), forbidden.end(), static_cast<int32_t>(c)) > 0) z[c] = -1e30f;
  }
  return z;
}

TEST(SamplerParamsTest, MinPKeepsWhatIsLikelyEnough) {
  // Probabilities 0.5, 0.25, 0.15, 0.1 in columns 2, 0, 3, 1.
  const std::vector<float> z = {std::log(0.25f), std::log(0.1f), std::log(0.5f), std::log(0.15f)};
  struct Case {
    SamplingParams params;
    std::set<int32_t> kept;
  };
  const Case cases[] = {
      {{.min_p = 0.49f}, {2, 0}},
      {{.min_p = 0.51f}, {2}},
      {{.min_p = 0.25f}, {2, 0, 3}},
      {{.min_p = 0.05f}, {2, 0, 3, 1}},
      {{.min_p = 1.0f}, {2}},
      {{.top_k = 2, .min_p = 0.25f}, {2, 0}},
      {{.top_p = 0.4f, .min_p = 0.25f}, {2}},
      {{.top_p = 0.6f, .top_k = 3, .min_p = 0.1f}, {2, 0}},
  };
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const Case& c : cases) {
      std::set<int32_t> seen;
      for (uint64_t seed = 0; seed < 300; ++seed) {
        seen.insert(draw_one(ctx, z, c.params, seed, 5).token_id);
      }
      EXPECT_EQ(seen, c.kept) << name << " min_p " << c.params.min_p;
    }
  });
}

TEST(SamplerParamsTest, MinPIsMeasuredAtTheTemperature) {
  const std::vector<float> z = {0.0f, -1.0f};
  std::set<int32_t> cool, warm;
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  for (uint64_t seed = 0; seed < 300; ++seed) {
    // e^-1 = 0.37 against 0.5; e^-0.5 = 0.61.
    cool.insert(draw_one(ctx, z, {.min_p = 0.5f}, seed, 5).token_id);
    warm.insert(draw_one(ctx, z, {.temperature = 2.0f, .min_p = 0.5f}, seed, 5).token_id);
  }
  EXPECT_EQ(cool, (std::set<int32_t>{0}));
  EXPECT_EQ(warm, (std::set<int32_t>{0, 1}));
}

TEST(SamplerParamsTest, PenaltiesChangeTheDistributionThatIsDrawnFromAndReported) {
  const std::vector<int32_t> generated = {3, 7, 3, 3, 20, 7, 39}, forbidden = {5, 11};
  SamplingParams all{.frequency_penalty = 0.5f,
                     .presence_penalty = -0.25f,
                     .repetition_penalty = 1.3f,
                     .logit_bias = {{7, 2.0f}, {4, -1.5f}}};
  SamplingParams cooler = all;
  cooler.temperature = 0.7f;
  cooler.top_p = 0.9f;
  SamplingParams greedy = all;
  greedy.temperature = 0;
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    Sampler sampler;
    for (const SamplingParams& params : {all, cooler, greedy}) {
      SamplingParams plain;
      plain.temperature = params.temperature;
      plain.top_p = params.top_p;
      for (uint32_t seed = 0; seed < 20; ++seed) {
        const std::vector<float> z = random_floats(40, -3, 3, seed);
        const std::vector<float> expected_z = adjusted(z, params, generated, forbidden);
        const DrawnToken expected = draw_one(ctx, expected_z, plain, seed, 9);
        Draw draw{z.data(), &params, seed, 9, generated, forbidden};
        DrawnToken token{};
        sampler.sample(ctx, 40, {&draw, 1}, {&token, 1});
        EXPECT_EQ(token.token_id, expected.token_id) << name;
        EXPECT_EQ(token.log_prob, expected.log_prob) << name;
        EXPECT_NE(token.token_id, 5);
        EXPECT_NE(token.token_id, 11);
      }
    }
  });
}

TEST(SamplerParamsTest, NeutralPenaltiesLeaveTheBitsAlone) {
  const std::vector<int32_t> generated = {1, 2, 2};
  const SamplingParams neutral{.repetition_penalty = 1.0f};
  const std::vector<float> z = random_floats(40, -3, 3, 3);
  EXPECT_FALSE(adjusts_logits({z.data(), &neutral, 1, 1, generated}));
  const SamplingParams frequency{.frequency_penalty = 0.1f};
  EXPECT_FALSE(adjusts_logits({z.data(), &frequency, 1, 1, {}})) << "nothing generated yet";
  EXPECT_TRUE(adjusts_logits({z.data(), &frequency, 1, 1, generated}));
}

TEST(SamplerParamsTest, ListsAreOfTheDistributionDrawnFrom) {
  const int64_t V = 50;
  std::vector<float> z = random_floats(V, -3, 3, 8);
  z[30] = z[10] = z[20] = 4;  // a tie: the lower id first
  const LogProbLists lists{.num_top = 5, .token_ids = {49, 20, 0}};
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const float temperature : {0.0f, 1.0f, 0.6f}) {
      const SamplingParams params{.temperature = temperature, .top_k = 2};
      std::vector<float> scaled = z;
      if (temperature > 0) {
        for (float& v : scaled) v /= temperature;
      }
      const float lse = log_sum_exp(ctx, scaled.data(), V);
      Draw draw{z.data(), &params, 3, 9};
      draw.lists = &lists;
      DrawnToken token{};
      Sampler().sample(ctx, V, {&draw, 1}, {&token, 1});
      ASSERT_EQ(token.top.size(), 5u);
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(token.top[i].token_id, static_cast<int32_t>(10 * (i + 1))) << name;
      }
      for (size_t i = 0; i < 5; ++i) {
        EXPECT_EQ(token.top[i].log_prob, scaled[token.top[i].token_id] - lse) << name;
      }
      EXPECT_GE(token.top[3].log_prob, token.top[4].log_prob);
      ASSERT_EQ(token.listed.size(), 3u);
      EXPECT_EQ(token.listed[0], (TokenLogProb{49, scaled[49] - lse}));
      EXPECT_EQ(token.listed[1], (TokenLogProb{20, scaled[20] - lse}));
      EXPECT_EQ(token.listed[2], (TokenLogProb{0, scaled[0] - lse}));
    }
    const DrawnToken score = score_token(ctx, z.data(), V, 20, {.num_top = 100});
    EXPECT_EQ(score.log_prob, z[20] - log_sum_exp(ctx, z.data(), V));
    EXPECT_EQ(score.top.size(), 50u) << "no more than there are";
    z[3] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_THROW(score_token(ctx, z.data(), V, 20, {}), UserError);
    z[3] = 0;
  });
}

TEST(SamplerParamsTest, ParametersOutOfRangeAreNamed) {
  const auto problem = [](const SamplingParams& p) -> std::string {
    try {
      check_sampling_params(p);
    } catch (const UserError& e) {
      return e.what();
    }
    return "";
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(problem({.min_p = 1,
                     .min_new_tokens = 128,
                     .frequency_penalty = -2,
                     .presence_penalty = 2,
                     .repetition_penalty = 2,
                     .logit_bias = {{1, 1000}}}),
            "");
  EXPECT_NE(problem({.min_p = 1.1f}).find("min_p"), std::string::npos);
  EXPECT_NE(problem({.min_p = nan}).find("min_p"), std::string::npos);
  EXPECT_NE(problem({.min_new_tokens = 129}).find("min_new_tokens"), std::string::npos);
  EXPECT_NE(problem({.frequency_penalty = 2.1f}).find("frequency_penalty"), std::string::npos);
  EXPECT_NE(problem({.presence_penalty = nan}).find("presence_penalty"), std::string::npos);
  EXPECT_NE(problem({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(problem({.logit_bias = {{7, 1e30f}}}).find("logit_bias of token 7"), std::string::npos);
}

}  // namespace
}  // namespace fathom
