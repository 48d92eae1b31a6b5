#include "fathom/kernels/router/router.h"

#include <limits>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/router/router_ref.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;

struct Out {
  std::vector<int32_t> idx;
  std::vector<float> weights;
};

/// Fills in the outputs of `p` and runs it.
Out run(const ExecContext& ctx, RouterFwd p) {
  Out out{std::vector<int32_t>(static_cast<size_t>(p.T * p.K)),
          std::vector<float>(static_cast<size_t>(p.T * p.K))};
  p.topk_idx = out.idx.data();
  p.topk_weights = out.weights.data();
  router_fwd(ctx, p);
  return out;
}

RouterFwd request(const std::vector<float>& logits, int64_t E, int64_t K) {
  RouterFwd p{};
  p.logits = logits.data();
  p.T = static_cast<int64_t>(logits.size()) / E;
  p.E = E;
  p.K = K;
  p.scaling = 1.5f;
  return p;
}

std::string message_of(const ExecContext& ctx, const RouterFwd& p) {
  try {
    run(ctx, p);
  } catch (const UserError& e) {
    return e.what();
  }
  return "no error";
}

TEST(RouterTest, BiasedTopTwoGivesThePublishedNumbers) {
  const std::vector<float> logits = {1, -2, 0.5f, 3}, bias = {0, 2, 0, -1};
  RouterFwd p = request(logits, 4, 2);
  p.bias = bias.data();
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Out out = run(ctx, p);
    EXPECT_EQ(out.idx, (std::vector<int32_t>{1, 0})) << name;
    expect_close(out.weights, {0.3557369, 1.1442631}, 2e-7, 0, name);
  });
}

TEST(RouterTest, MatchesTheFp64ReferenceWithSameBitsForAnyBatchThreadsAndInstructionSet) {
  struct Shape {
    int64_t T, E, K;
  };
  for (const Shape& shape :
       {Shape{70, 256, 6}, Shape{33, 8, 2}, Shape{3, 21, 21}, Shape{1, 1, 1}, Shape{40, 384, 17}}) {
    const auto logits = random_floats(shape.T * shape.E, -6, 6, 17);
    const auto bias = random_floats(shape.E, -0.5f, 0.5f, 18);
    RouterFwd p = request(logits, shape.E, shape.K);
    p.bias = bias.data();
    ThreadPool one(1);
    const Out expected = run({&one, CpuIsa::kAvx2}, p);
    std::vector<double> ref;
    for (int64_t t = 0; t < shape.T; ++t) {
      const std::vector<double> row(logits.begin() + t * shape.E,
                                    logits.begin() + (t + 1) * shape.E);
      const auto idx = router_topk_ref(router_scores_ref(row), to_double(bias), shape.K);
      const std::vector<int32_t> actual(expected.idx.begin() + t * shape.K,
                                        expected.idx.begin() + (t + 1) * shape.K);
      EXPECT_EQ(actual, idx) << "token " << t;
      const auto w = router_weights_ref(row, idx, 1.5);
      ref.insert(ref.end(), w.begin(), w.end());
    }
    // softplus and sqrt: 4 roundings; K terms of a sum of positive numbers; division, product.
    expect_close(expected.weights, ref, 0, static_cast<double>(shape.K + 10) * kEps, "weights");
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const Out whole = run(ctx, p);
      expect_same_bits(whole.idx, expected.idx, name);
      expect_same_bits(whole.weights, expected.weights, name);
      for (int64_t t = 0; t < shape.T; ++t) {
        RouterFwd single = p;
        single.logits += t * shape.E;
        single.T = 1;
        const Out out = run(ctx, single);
        for (int64_t j = 0; j < shape.K; ++j) {
          const size_t at = static_cast<size_t>(t * shape.K + j);
          ASSERT_EQ(out.idx[static_cast<size_t>(j)], expected.idx[at]);
          ASSERT_EQ(out.weights[static_cast<size_t>(j)], expected.weights[at]);
        }
      }
    });
  }
}

TEST(RouterTest, TiesGoToTheLowerExpertIndex) {
  std::vector<float> logits(40, 0.25f);
  logits[30] = 1;
  RouterFwd p = request(logits, 40, 4);
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    EXPECT_EQ(run(ctx, p).idx, (std::vector<int32_t>{30, 0, 1, 2}));
  });
}

TEST(RouterTest, HashRowsAreTakenAsTheyAreWithDuplicates) {
  const std::vector<int32_t> table = {0, 1, 2, 3, 3, 1}, tokens = {2, 0, 2};
  const auto logits = random_floats(3 * 4, -2, 2, 5);
  RouterFwd p = request(logits, 4, 2);
  p.tid2eid = table.data();
  p.token_ids = tokens.data();
  const std::vector<int32_t> replay = {1, 1, 0, 3, 2, 2};
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    EXPECT_EQ(run(ctx, p).idx, (std::vector<int32_t>{3, 1, 0, 1, 3, 1}));
    RouterFwd replayed = p;
    replayed.replay_idx = replay.data();
    const Out out = run(ctx, replayed);
    EXPECT_EQ(out.idx, replay);
    std::vector<double> ref;
    for (int64_t t = 0; t < 3; ++t) {
      const std::vector<double> row(logits.begin() + t * 4, logits.begin() + (t + 1) * 4);
      const auto w =
          router_weights_ref(row, {replay.begin() + t * 2, replay.begin() + (t + 1) * 2}, 1.5);
      ref.insert(ref.end(), w.begin(), w.end());
    }
    expect_close(out.weights, ref, 0, 12 * kEps, name);
  });
}

TEST(RouterTest, VeryNegativeLogitsGiveFiniteWeightsAndGradients) {
  for (const float z :
       {-50.0f, -103.5f, -150.0f, -1000.0f, -std::numeric_limits<float>::infinity()}) {
    const std::vector<float> logits = {z, z, z, z};
    RouterFwd p = request(logits, 4, 2);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const Out out = run(ctx, p);
      const std::vector<float> dw = {1, -1};
      std::vector<float> dz(4, 7.0f);
      router_bwd(ctx, {.logits = logits.data(),
                       .topk_idx = out.idx.data(),
                       .dtopk_weights = dw.data(),
                       .T = 1,
                       .E = 4,
                       .K = 2,
                       .scaling = 1.5f,
                       .dlogits = dz.data()});
      for (const float w : out.weights) EXPECT_TRUE(std::isfinite(w)) << name << " z = " << z;
      for (const float g : dz) EXPECT_TRUE(std::isfinite(g)) << name << " z = " << z;
    });
  }
}

TEST(RouterTest, BadInputIsRefusedNamingTokenAndExpert) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<int32_t> table = {0, 1, 4, 0}, tokens = {1, 0}, negative = {-1, 0},
                             bad_replay = {0, 1, 2, -3}, good_replay = {0, 1, 2, 3};
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    for (const float bad : {nan, inf}) {
      auto logits = random_floats(8, -1, 1, 6);
      logits[6] = bad;
      const RouterFwd p = request(logits, 4, 2);
      EXPECT_NE(message_of(ctx, p).find("token 1, expert 2"), std::string::npos);
      RouterFwd replayed = p;
      replayed.replay_idx = good_replay.data();
      EXPECT_NE(message_of(ctx, replayed).find("token 1, expert 2"), std::string::npos);
    }
    const auto logits = random_floats(8, -1, 1, 6);
    const std::vector<float> bias = {0, nan, 0, 0};
    RouterFwd p = request(logits, 4, 2);
    p.bias = bias.data();
    EXPECT_NE(message_of(ctx, p).find("token 0, expert 1"), std::string::npos);
    p.bias = nullptr;
    p.replay_idx = bad_replay.data();
    EXPECT_NE(message_of(ctx, p).find("the routing replay names expert -3"), std::string::npos);
    p.replay_idx = nullptr;
    p.tid2eid = table.data();
    p.token_ids = tokens.data();
    EXPECT_NE(message_of(ctx, p).find("names expert 4"), std::string::npos);
    p.token_ids = negative.data();
    EXPECT_NE(message_of(ctx, p).find("token id -1"), std::string::npos);
    p = request(logits, 4, 5);
    EXPECT_NE(message_of(ctx, p).find("experts per token (5)"), std::string::npos);
  });
}

TEST(RouterTest, ZeroTokensTouchNothing) {
  RouterFwd p = request({}, 4, 2);
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    EXPECT_TRUE(run(ctx, p).idx.empty());
    RouterBwd backward{};
    backward.E = 4;
    backward.K = 2;
    router_bwd(ctx, backward);
  });
}

TEST(RouterTest, BackwardKeepsItsAccuracyOnBothSidesOfTheTail) {
  // Both scores are tiny, so their ratio, and with it the gradient, is of order one.
  for (const float z0 : {-39.5f, -40.5f, -60.0f, -80.0f}) {
    const std::vector<float> logits = {z0, z0 - 1};
    const std::vector<int32_t> idx = {0, 1};
    const std::vector<float> dw = {1, -1};
    std::vector<double> z = to_double(logits);
    const auto ref = central_differences(z, 1e-5, [&] {
      const auto w = router_weights_ref(z, idx, 1.5);
      return w[0] - w[1];
    });
    EXPECT_GT(std::abs(ref[0]), 0.1);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> dz(2);
      router_bwd(ctx, {.logits = logits.data(),
                       .topk_idx = idx.data(),
                       .dtopk_weights = dw.data(),
                       .T = 1,
                       .E = 2,
                       .K = 2,
                       .scaling = 1.5f,
                       .dlogits = dz.data()});
      expect_close(dz, ref, 0, 32 * kEps + 1e-8, name);
    });
  }
}

TEST(RouterTest, BackwardMatchesCentralDifferencesAndAddsDuplicates) {
  const int64_t T = 3, E = 20, K = 18;  // more slots than lanes
  auto logits = random_floats(T * E, -5, 5, 91);
  logits[0] = -45, logits[1] = -39;
  const auto dw = random_floats(T * K, -1, 1, 92);
  std::vector<int32_t> idx;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t j = 0; j < K; ++j) idx.push_back(static_cast<int32_t>((j * 7 + t) % 10));
  }
  std::vector<double> z = to_double(logits);
  const auto loss = [&] {
    double sum = 0;
    for (int64_t t = 0; t < T; ++t) {
      const auto w = router_weights_ref({z.begin() + t * E, z.begin() + (t + 1) * E},
                                        {idx.begin() + t * K, idx.begin() + (t + 1) * K}, 2.5);
      for (int64_t j = 0; j < K; ++j) {
        sum += w[static_cast<size_t>(j)] * dw[static_cast<size_t>(t * K + j)];
      }
    }
    return sum;
  };
  const auto ref = central_differences(z, 1e-5, loss);
  std::vector<float> first;
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> dz(static_cast<size_t>(T * E), 5.0f);
    router_bwd(ctx, {.logits = logits.data(),
                     .topk_idx = idx.data(),
                     .dtopk_weights = dw.data(),
                     .T = T,
                     .E = E,
                     .K = K,
                     .scaling = 2.5f,
                     .dlogits = dz.data()});
    // About 2 K terms below 1 over a sum near K, times a slope below 1.
    expect_close(dz, ref, 2 * 18 * kEps, 1e-6, name);
    if (first.empty()) first = dz;
    expect_same_bits(dz, first, name);
  });
}

}  // namespace
}  // namespace fathom
