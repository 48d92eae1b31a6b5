#include "fathom/kernels/log_prob/log_prob.h"

#include <limits>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/log_prob/log_prob_ref.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;

struct Case {
  int64_t R, D, V;
  float temperature;
  std::vector<float> hidden, w_rows, w;
  std::vector<int32_t> targets;
  PanelLayout layout() const { return {.rows = V, .cols = D, .panel_rows = kWeightPanelRows}; }
};

Case make_case(int64_t R, int64_t D, int64_t V, float temperature, float width, uint32_t seed) {
  Case c{R,
         D,
         V,
         temperature,
         random_floats(R * D, -1, 1, seed),
         random_floats(V * D, -width, width, seed + 1),
         {},
         {}};
  c.w.resize(static_cast<size_t>(c.layout().size()));
  for (int64_t n = 0; n < V; ++n) {
    for (int64_t k = 0; k < D; ++k) {
      c.w[static_cast<size_t>(c.layout().index(n, k))] = c.w_rows[static_cast<size_t>(n * D + k)];
    }
  }
  for (int64_t r = 0; r < R; ++r) c.targets.push_back(static_cast<int32_t>((r * 7919 + V - 1) % V));
  return c;
}

struct Out {
  std::vector<float> log_probs, lse, entropy;
};

LogProbFwd request(const Case& c, int64_t first, int64_t rows, Out& out) {
  const size_t n = static_cast<size_t>(rows);
  out.log_probs.resize(n);
  out.lse.resize(n);
  out.entropy.resize(n);
  return {.hidden = c.hidden.data() + first * c.D,
          .w_panels = c.w.data(),
          .targets = c.targets.data() + first,
          .R = rows,
          .D = c.D,
          .V = c.V,
          .temperature = c.temperature,
          .log_probs = out.log_probs.data(),
          .lse = out.lse.data(),
          .entropy = out.entropy.data()};
}

Out run(const ExecContext& ctx, const Case& c, int64_t first, int64_t rows) {
  Out out;
  log_prob_fwd(ctx, request(c, first, rows, out));
  return out;
}

TEST(LogProbTest, ChunksOfTheReleasedVocabularyAndOfSmallOnes) {
  EXPECT_EQ(vocab_chunk_size(129280), 3232);  // 40 chunks
  EXPECT_EQ(vocab_chunk_size(1), 1);
  EXPECT_EQ(vocab_chunk_size(8), 1);
  EXPECT_EQ(vocab_chunk_size(9), 2);
  EXPECT_EQ(vocab_chunk_size(25856), 3232);
  EXPECT_EQ(vocab_chunk_size(25857), 1617);  // 16 chunks
}

TEST(LogProbTest, MatchesTheFp64Reference) {
  struct Shape {
    int64_t R, D, V;
    float temperature, width;
  };
  for (const Shape& s : {Shape{3, 8, 1, 1, 1}, Shape{4, 8, 2, 1, 1}, Shape{5, 16, 9, 0.7f, 1},
                         Shape{140, 12, 517, 1, 2}, Shape{3, 24, 6001, 1.3f, 3},
                         Shape{2, 4, 30011, 1, 1}, Shape{3, 16, 100, 0.05f, 2}}) {
    const Case c = make_case(s.R, s.D, s.V, s.temperature, s.width, 5);
    const LogProbRef ref =
        log_prob_ref(to_double(c.hidden), to_double(c.w_rows), c.targets, s.D, s.V, c.temperature);
    // A logit errs by D roundings of a sum below D * width, over the temperature; sums of n
    // positive numbers in 16 lanes and chunks err by n/16/8 + 50 roundings in relative terms.
    const double logit = static_cast<double>(s.D * s.D) * s.width / s.temperature * kEps;
    const double sums = (static_cast<double>(s.V) / 128 + 60) * kEps;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const Out out = run(ctx, c, 0, s.R);
      expect_close(out.lse, ref.lse, logit + sums, 4 * kEps, name + " lse");
      expect_close(out.log_probs, ref.log_probs, 2 * logit + sums, 8 * kEps, name + " logp");
      // |dH/dz| <= p |log p + H|, at most log V in sum.
      const double log_v = 1 + std::log(static_cast<double>(s.V));
      expect_close(out.entropy, ref.entropy, log_v * (2 * logit + 2 * sums), 0, name + " entropy");
    });
  }
}

TEST(LogProbTest, BitsDoNotDependOnBatchThreadsInstructionSetOrEntropy) {
  for (const int64_t V : {517, 9001}) {
    const Case c = make_case(150, 20, V, 0.9f, 1, 6);
    ThreadPool one(1);
    const Out expected = run(base_context(&one), c, 0, c.R);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const Out whole = run(ctx, c, 0, c.R);
      expect_same_bits(whole.log_probs, expected.log_probs, name);
      expect_same_bits(whole.lse, expected.lse, name);
      expect_same_bits(whole.entropy, expected.entropy, name);
      for (const int64_t r : {0, 77, 149}) {
        Out single;
        LogProbFwd p = request(c, r, 1, single);
        p.entropy = nullptr;
        log_prob_fwd(ctx, p);
        EXPECT_EQ(single.log_probs[0], expected.log_probs[static_cast<size_t>(r)]) << name;
        EXPECT_EQ(single.lse[0], expected.lse[static_cast<size_t>(r)]) << name;
        // What a decoder does: the row's logits at once, divided, then log_sum_exp.
        std::vector<float> z(static_cast<size_t>(V));
        linear_fwd(ctx, {.x = c.hidden.data() + r * c.D,
                         .x_stride = c.D,
                         .w_panels = c.w.data(),
                         .y = z.data(),
                         .y_stride = V,
                         .T = 1,
                         .N = V,
                         .K = c.D});
        for (float& v : z) v /= c.temperature;
        EXPECT_EQ(log_sum_exp(ctx, z.data(), V), expected.lse[static_cast<size_t>(r)]) << name;
      }
    });
  }
}

TEST(LogProbTest, LogSumExpOfExtremeLogits) {
  const float inf = std::numeric_limits<float>::infinity();
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> z(1000, -inf);
    z[700] = 3;  // whole chunks are masked
    EXPECT_EQ(log_sum_exp(ctx, z.data(), 1000), 3) << name;
    EXPECT_EQ(log_sum_exp(ctx, z.data(), 100), -inf) << name;
    z.assign(1000, 1e30f);
    EXPECT_EQ(log_sum_exp(ctx, z.data(), 1000), 1e30f) << name;
    z.assign(1000, -200);
    EXPECT_NEAR(log_sum_exp(ctx, z.data(), 1000), -200 + std::log(1000.0), 200 * 2 * kEps) << name;
    z[999] = std::nanf("");
    EXPECT_TRUE(std::isnan(log_sum_exp(ctx, z.data(), 1000))) << name;
  });
}

TEST(LogProbTest, BadRequestsAreRefused) {
  Case c = make_case(3, 4, 11, 1, 1, 7);
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    for (const int32_t bad : {-1, 11}) {
      Case broken = c;
      broken.targets[2] = bad;
      try {
        run(ctx, broken, 0, 3);
        FAIL() << bad;
      } catch (const UserError& e) {
        const std::string text = str_cat("token id ", bad, " at row 2 is outside");
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
      }
    }
    for (const float bad : {0.0f, -1.0f, std::nanf("")}) {
      Case broken = c;
      broken.temperature = bad;
      EXPECT_THROW(run(ctx, broken, 0, 3), UserError);
    }
    EXPECT_TRUE(run(ctx, c, 0, 0).lse.empty());
  });
}

struct Grads {
  std::vector<float> hidden, w;
};
/// Adds to g.w; rows [first, first + rows).
void run_bwd(const ExecContext& ctx, const Case& c, const std::vector<float>& dlogp,
             const float* dentropy, int64_t first, int64_t rows, Grads& g) {
  Out out;
  LogProbBwd b{};
  b.fwd = request(c, first, rows, out);
  log_prob_fwd(ctx, b.fwd);
  b.dlog_probs = dlogp.data() + first;
  b.dentropy = dentropy == nullptr ? nullptr : dentropy + first;
  b.dhidden = g.hidden.data() + first * c.D;
  b.dw_panels = g.w.empty() ? nullptr : g.w.data();
  log_prob_bwd(ctx, b);
}

TEST(LogProbTest, BackwardMatchesCentralDifferences) {
  for (const float temperature : {1.0f, 0.6f}) {
    for (const bool with_entropy : {false, true}) {
      const Case c = make_case(4, 5, 19, temperature, 1, 8);
      const auto dlogp = random_floats(4, -1, 1, 9), dentropy = random_floats(4, -1, 1, 10);
      std::vector<double> hidden = to_double(c.hidden), w = to_double(c.w_rows);
      const auto loss = [&] {
        const LogProbRef ref = log_prob_ref(hidden, w, c.targets, c.D, c.V, temperature);
        double sum = 0;
        for (size_t r = 0; r < 4; ++r) {
          sum += dlogp[r] * ref.log_probs[r];
          if (with_entropy) sum += dentropy[r] * ref.entropy[r];
        }
        return sum;
      };
      const auto dhidden_ref = central_differences(hidden, 1e-5, loss);
      const auto dw_ref = central_differences(w, 1e-5, loss);
      for_each_context([&](const ExecContext& ctx, const std::string& name) {
        Grads g{std::vector<float>(c.hidden.size(), 9.0f), std::vector<float>(c.w.size())};
        run_bwd(ctx, c, dlogp, with_entropy ? dentropy.data() : nullptr, 0, 4, g);
        std::vector<float> dw(c.w_rows.size());
        for (int64_t n = 0; n < c.V; ++n) {
          for (int64_t k = 0; k < c.D; ++k) {
            dw[static_cast<size_t>(n * c.D + k)] = g.w[static_cast<size_t>(c.layout().index(n, k))];
          }
        }
        // Sums of 19 (4) terms of order 1 / 0.6 with about 20 roundings each.
        expect_close(g.hidden, dhidden_ref, 40 * 2 * kEps, 1e-8, name + " dhidden");
        expect_close(dw, dw_ref, 40 * 2 * kEps, 1e-8, name + " dw");
      });
    }
  }
}

TEST(LogProbTest, BackwardBitsDoNotDependOnMicroBatchesThreadsOrInstructionSet) {
  const Case c = make_case(270, 6, 4500, 1, 1, 11);  // several row and column blocks
  const auto dlogp = random_floats(c.R, -1, 1, 12), dentropy = random_floats(c.R, -1, 1, 13);
  const auto start = [&] {
    return Grads{std::vector<float>(c.hidden.size()), std::vector<float>(c.w.size(), 0.0f)};
  };
  ThreadPool one(1);
  Grads expected = start();
  run_bwd(base_context(&one), c, dlogp, dentropy.data(), 0, c.R, expected);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{270}, {1, 140, 129}}) {
      Grads g = start();
      int64_t first = 0;
      for (const int64_t n : sizes) {
        run_bwd(ctx, c, dlogp, dentropy.data(), first, n, g);
        first += n;
      }
      expect_same_bits(g.hidden, expected.hidden, name + " dhidden");
      expect_same_bits(g.w, expected.w, name + " dw");
    }
    Grads frozen{std::vector<float>(c.hidden.size()), {}};
    run_bwd(ctx, c, dlogp, dentropy.data(), 0, c.R, frozen);
    expect_same_bits(frozen.hidden, expected.hidden, name + " dhidden with a frozen head");
  });
}

}  // namespace
}  // namespace fathom
