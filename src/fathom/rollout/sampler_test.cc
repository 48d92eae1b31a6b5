#include "fathom/rollout/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <string>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/log_prob/log_prob.h"
#include "fathom/rollout/sampler_cpu.h"

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

/// Softmax of logits / temperature in fp64.
std::vector<double> probabilities(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  for (const float z : logits) p.push_back(std::exp(static_cast<double>(z) / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= sum;
  return p;
}

/// The tokens that `draws` seeds give, counted.
std::vector<int64_t> histogram(const ExecContext& ctx, const std::vector<float>& logits,
                               const SamplingParams& params, int64_t draws) {
  Sampler sampler;
  std::vector<int64_t> counts(logits.size());
  for (int64_t i = 0; i < draws; ++i) {
    const Draw draw{logits.data(), &params, mix64(17, static_cast<uint64_t>(i)), i % 1000};
    DrawnToken token{};
    sampler.sample(ctx, static_cast<int64_t>(logits.size()), {&draw, 1}, {&token, 1});
    ++counts[static_cast<size_t>(token.token_id)];
  }
  return counts;
}

double chi_square(const std::vector<int64_t>& counts, const std::vector<double>& p) {
  const double n = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "column " << i << " has probability 0";
      continue;
    }
    const double difference = static_cast<double>(counts[i]) - n * p[i];
    sum += difference * difference / (n * p[i]);
  }
  return sum;
}

/// Chi-square with k degrees of freedom has mean k and variance 2k; six standard deviations.
double chi_square_limit(double k) { return k + 6 * std::sqrt(2 * k); }

TEST(SamplerTest, PhiloxGivesThePublishedVectors) {
  // Random123's known-answer vectors of philox4x32-10.
  struct Case {
    uint32_t counter[4], key[2], expected[4];
  };
  const Case cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const Case& c : cases) {
      uint32_t out[4];
      FATHOM_CPU_DISPATCH(ctx, philox_block, c.counter, c.key, out);
      for (int w = 0; w < 4; ++w) EXPECT_EQ(out[w], c.expected[w]) << name << " word " << w;
    }
  });
}

TEST(SamplerTest, NoiseIsTheGumbelFunctionOfThePhiloxWords) {
  const uint64_t seed = 0x0123456789abcdefull;
  const int64_t position = (int64_t{1} << 40) + 5, first = 3, count = 4001;
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> noise(static_cast<size_t>(count));
    gumbel_noise(ctx, seed, position, first, count, noise.data());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = first + i;
      const uint32_t counter[4] = {static_cast<uint32_t>(column / 4), 0, 5, 256};
      const uint32_t key[2] = {0x89abcdefu, 0x01234567u};
      uint32_t words[4];
      FATHOM_CPU_DISPATCH(ctx, philox_block, counter, key, words);
      const double u = (static_cast<double>(words[column % 4]) + 0.5) * 0x1p-32;
      const double expected = -std::log(-std::log(u));
      // E carries the rounding of 1 - t (2^-25, against E >= 2^-8) and of two logarithms.
      EXPECT_NEAR(static_cast<double>(noise[static_cast<size_t>(i)]), expected,
                  2e-5 + 1e-6 * std::abs(expected))
          << name << " column " << column;
    }
  });
}

TEST(SamplerTest, GreedyTakesTheLargestLogitAndTheLowerIdOnATie) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const SamplingParams greedy{.temperature = 0.0f};
    for (const size_t size : {1u, 2u, 15u, 16u, 17u, 33u, 200u}) {
      for (size_t best = 0; best < size; ++best) {
        std::vector<float> z = random_floats(static_cast<int64_t>(size), -3, 3, 7);
        z[best] = 4;
        z[size - 1] = 4;  // a tie with the last column
        EXPECT_EQ(draw_one(ctx, z, greedy, 1, 1).token_id, static_cast<int32_t>(best))
            << name << " size " << size;
      }
    }
    const std::vector<float> zeros = {-1.0f, -0.0f, 0.0f};
    EXPECT_EQ(draw_one(ctx, zeros, greedy, 1, 1).token_id, 1) << "-0 equals +0";
    const std::vector<float> all_negative(40, -7.5f);
    EXPECT_EQ(draw_one(ctx, all_negative, greedy, 1, 1).token_id, 0);
  });
}

TEST(SamplerTest, EqualLogitsAndEqualNoiseCannotFavourTheHigherId) {
  // Noise differs per column, so a real tie needs a huge logit that swallows it.
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    std::vector<float> z(100, 0.0f);
    z[41] = z[73] = z[98] = 1e9f;
    EXPECT_EQ(draw_one(ctx, z, {}, 5, 5).token_id, 41);
    EXPECT_EQ(draw_one(ctx, z, {.top_k = 3}, 5, 5).token_id, 41);
  });
}

TEST(SamplerTest, NotANumberIsAnErrorThatNamesThePosition) {
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (const size_t at : {0u, 5u, 31u, 36u}) {
        std::vector<float> z = random_floats(37, -1, 1, 3);
        z[at] = bad;
        for (const float temperature : {0.0f, 1.0f, 0.5f}) {
          try {
            draw_one(ctx, z, {.temperature = temperature}, 1, 12345);
            ADD_FAILURE() << "no error for " << bad << " in column " << at;
          } catch (const UserError& e) {
            EXPECT_NE(std::string(e.what()).find("12345"), std::string::npos) << e.what();
          }
        }
      }
    }
  });
}

TEST(SamplerTest, LogProbIsTheTrainersArithmetic) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const std::vector<float> z = random_floats(777, -8, 8, 11);
    for (const float temperature : {1.0f, 0.8f, 1.7f}) {
      std::vector<float> scaled = z;
      for (float& v : scaled) v /= temperature;
      const float lse = log_sum_exp(ctx, scaled.data(), 777);
      for (uint64_t seed = 0; seed < 20; ++seed) {
        for (const SamplingParams& params :
             {SamplingParams{.temperature = temperature},
              SamplingParams{.temperature = temperature, .top_p = 0.7f, .top_k = 40}}) {
          const DrawnToken token = draw_one(ctx, z, params, seed, 3);
          EXPECT_EQ(token.log_prob, scaled[static_cast<size_t>(token.token_id)] - lse) << name;
        }
      }
    }
    const DrawnToken greedy = draw_one(ctx, z, {.temperature = 0.0f}, 0, 3);
    EXPECT_EQ(greedy.log_prob,
              z[static_cast<size_t>(greedy.token_id)] - log_sum_exp(ctx, z.data(), 777));
  });
}

TEST(SamplerTest, ResultsDependOnSeedPositionAndRowAloneNotOnTheBatchOrTheMachine) {
  constexpr int64_t kVocab = 3001, kDraws = 24;
  const std::vector<float> rows = random_floats(kDraws * kVocab, -4, 4, 5);
  std::vector<SamplingParams> params;
  for (int64_t i = 0; i < kDraws; ++i) {
    params.push_back({.temperature = i % 3 == 0 ? 1.0f : 0.6f,
                      .top_p = i % 4 == 1 ? 0.9f : 1.0f,
                      .top_k = i % 5 == 2 ? 50 : -1});
  }
  std::vector<Draw> draws;
  for (int64_t i = 0; i < kDraws; ++i) {
    draws.push_back({rows.data() + i * kVocab, &params[static_cast<size_t>(i)],
                     mix64(3, static_cast<uint64_t>(i)), 100 + i});
  }
  std::vector<int32_t> expected_ids;
  std::vector<float> expected_log_probs;
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    Sampler sampler;
    std::vector<DrawnToken> alone(kDraws), together(kDraws), reversed(kDraws);
    for (size_t i = 0; i < kDraws; ++i) sampler.sample(ctx, kVocab, {&draws[i], 1}, {&alone[i], 1});
    sampler.sample(ctx, kVocab, draws, together);
    const std::vector<Draw> backwards(draws.rbegin(), draws.rend());
    sampler.sample(ctx, kVocab, backwards, reversed);
    std::reverse(reversed.begin(), reversed.end());
    std::vector<int32_t> ids;
    std::vector<float> log_probs;
    for (size_t i = 0; i < kDraws; ++i) {
      for (const DrawnToken& other : {together[i], reversed[i]}) {
        EXPECT_EQ(other.token_id, alone[i].token_id) << name << " draw " << i;
        EXPECT_EQ(other.log_prob, alone[i].log_prob) << name << " draw " << i;
      }
      ids.push_back(alone[i].token_id);
      log_probs.push_back(alone[i].log_prob);
    }
    if (expected_ids.empty()) expected_ids = ids, expected_log_probs = log_probs;
    expect_same_bits(ids, expected_ids, name);
    expect_same_bits(log_probs, expected_log_probs, name);
  });
  EXPECT_GT(std::set<int32_t>(expected_ids.begin(), expected_ids.end()).size(), 15u);
}

TEST(SamplerTest, SkippingColumnsThatCannotWinChangesNothing) {
  // Peaked rows, where nearly all groups are skipped, against the full argmax.
  constexpr int64_t kVocab = 5000;
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  std::vector<float> z = random_floats(kVocab, -40, 0, 21);
  std::vector<float> noise(kVocab);
  for (int64_t i = 0; i < 200; ++i) {
    z[static_cast<size_t>(i * 23)] = 5.0f;
    const uint64_t seed = mix64(1, static_cast<uint64_t>(i));
    gumbel_noise(ctx, seed, i, 0, kVocab, noise.data());
    int32_t best = 0;
    for (size_t c = 1; c < kVocab; ++c) {
      if (z[c] + noise[c] > z[static_cast<size_t>(best)] + noise[static_cast<size_t>(best)]) {
        best = static_cast<int32_t>(c);
      }
    }
    EXPECT_EQ(draw_one(ctx, z, {}, seed, i).token_id, best) << "draw " << i;
  }
}

TEST(SamplerTest, DrawsFollowTheSoftmaxAtTheTemperature) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  const std::vector<float> z = random_floats(50, -3, 3, 9);
  for (const float temperature : {1.0f, 0.7f, 2.0f}) {
    const auto counts = histogram(ctx, z, {.temperature = temperature}, 60000);
    const auto p = probabilities(z, static_cast<double>(temperature));
    EXPECT_LT(chi_square(counts, p), chi_square_limit(49)) << "temperature " << temperature;
  }
}

TEST(SamplerTest, RareColumnsAreDrawnAsOftenAsTheyShould) {
  // One against 1,000 columns that share 0.5 %: the noise's tail must not be cut off.
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  std::vector<float> z(1001, std::log(0.005f / 1000));
  z[0] = std::log(0.995f);
  const auto counts = histogram(ctx, z, {}, 60000);
  const double rare = 60000 - static_cast<double>(counts[0]);
  EXPECT_NEAR(rare, 300, 6 * std::sqrt(300.0));
}

/// The kept set, by the definition: sort, then walk.
std::set<size_t> kept_by_definition(const std::vector<float>& z, const SamplingParams& params) {
  const auto p = probabilities(z, static_cast<double>(params.temperature));
  std::vector<size_t> order(z.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  std::set<size_t> kept;
  double before = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    if (params.top_k > 0 && rank >= static_cast<size_t>(params.top_k)) break;
    if (before > static_cast<double>(params.top_p)) break;
    kept.insert(order[rank]);
    before += p[order[rank]];
  }
  return kept;
}

TEST(SamplerTest, FiltersKeepTheColumnsOfTheDefinitionAndOnlyThose) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  const std::vector<float> z = random_floats(120, -2, 2, 31);
  for (const SamplingParams& params :
       {SamplingParams{.top_k = 1}, SamplingParams{.top_k = 7}, SamplingParams{.top_p = 0.5f},
        SamplingParams{.top_p = 0.95f}, SamplingParams{.top_p = 0.3f, .top_k = 5},
        SamplingParams{.temperature = 0.5f, .top_p = 0.6f, .top_k = 100},
        SamplingParams{.top_p = 1e-6f}}) {
    const std::set<size_t> kept = kept_by_definition(z, params);
    auto p = probabilities(z, static_cast<double>(params.temperature));
    double mass = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      if (!kept.contains(i)) p[i] = 0;
      mass += p[i];
    }
    for (double& v : p) v /= mass;
    const auto counts = histogram(ctx, z, params, 40000);
    EXPECT_LT(chi_square(counts, p), chi_square_limit(static_cast<double>(kept.size())))
        << "temperature " << params.temperature << " top_p " << params.top_p << " top_k "
        << params.top_k;
  }
}

TEST(SamplerTest, EqualProbabilitiesAreKeptFromTheLowestIdOn) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  const std::vector<float> z(64, 1.5f);
  for (const SamplingParams& params :
       {SamplingParams{.top_k = 3}, SamplingParams{.top_p = 2.5f / 64}}) {
    const auto counts = histogram(ctx, z, params, 2000);
    for (size_t c = 0; c < 64; ++c) EXPECT_EQ(counts[c] > 0, c < 3) << "column " << c;
  }
}

TEST(SamplerTest, FiltersThatAreOffChangeNothing) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const std::vector<float> z = random_floats(300, -2, 2, 77);
    const auto least_likely =
        static_cast<int32_t>(std::min_element(z.begin(), z.end()) - z.begin());
    for (uint64_t seed = 0; seed < 200; ++seed) {
      const int32_t plain = draw_one(ctx, z, {}, seed, 9).token_id;
      for (const int64_t top_k : {-1, 0, 300, 100000}) {
        EXPECT_EQ(draw_one(ctx, z, {.top_k = top_k}, seed, 9).token_id, plain) << name;
      }
      // Keeping all but the least likely column takes the other code path and the same noise.
      if (plain == least_likely) continue;
      EXPECT_EQ(draw_one(ctx, z, {.top_k = 299}, seed, 9).token_id, plain) << name;
    }
  });
}

TEST(SamplingParamsTest, EveryValueOutOfRangeIsNamed) {
  EXPECT_NO_THROW(check_sampling_params({}));
  EXPECT_NO_THROW(check_sampling_params({.temperature = 0, .top_k = -1, .max_new_tokens = 0}));
  try {
    check_sampling_params({.temperature = -1,
                           .top_p = 0,
                           .top_k = -2,
                           .max_new_tokens = -1,
                           .ignore_eos = false,
                           .stop_token_ids = {},
                           .stop = {""}});
    FAIL() << "no error";
  } catch (const UserError& e) {
    for (const char* name :
         {"temperature -1", "top_p 0", "top_k -2", "max_new_tokens -1", "stop"}) {
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(check_sampling_params({.temperature = std::nanf("")}), UserError);
  EXPECT_THROW(check_sampling_params({.top_p = std::nanf("")}), UserError);
}

}  // namespace
}  // namespace fathom
