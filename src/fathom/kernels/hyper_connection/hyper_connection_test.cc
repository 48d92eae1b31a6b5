#include "fathom/kernels/hyper_connection/hyper_connection.h"

#include "fathom/base/error.h"
#include "fathom/kernels/hyper_connection/hyper_connection_ref.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/linear/panel.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;  // one rounding of a float

size_t size(int64_t n) { return static_cast<size_t>(n); }

struct Case {
  HcShape s;
  int64_t N;
  std::vector<float> fn_rows, fn, base, scale, x;

  HcWeights weights() const { return {fn.data(), base.data(), scale.data()}; }
  HcRefWeights ref_weights() const {
    return {to_double(fn_rows), to_double(base), to_double(scale)};
  }
  PanelLayout layout() const { return {.rows = N, .cols = s.M * s.D, .panel_rows = kWeightPanelRows}; }
};

Case make_case(int64_t T, int64_t M, int64_t D, bool head, uint32_t seed) {
  Case c;
  c.s = {.T = T, .M = M, .D = D, .sinkhorn_iters = 20, .norm_eps = 1e-6f, .hc_eps = 1e-6f};
  c.N = head ? M : (2 + M) * M;
  const float width = 2.0f / std::sqrt(static_cast<float>(M * D));
  c.fn_rows = random_floats(c.N * M * D, -width, width, seed);
  c.fn.resize(size(c.layout().size()));
  for (int64_t n = 0; n < c.N; ++n) {
    for (int64_t k = 0; k < M * D; ++k) {
      c.fn[size(c.layout().index(n, k))] = c.fn_rows[size(n * M * D + k)];
    }
  }
  c.base = random_floats(c.N, -1, 1, seed + 1);
  c.scale = random_floats(head ? 1 : 3, 0.5f, 1.5f, seed + 2);
  c.x = random_floats(T * M * D, -2, 2, seed + 3);
  return c;
}

struct PreOut {
  std::vector<float> y, post, comb;
};
PreOut run_pre(const ExecContext& ctx, const Case& c, int64_t first, int64_t T) {
  HcShape s = c.s;
  s.T = T;
  PreOut out{std::vector<float>(size(T * s.D)), std::vector<float>(size(T * s.M)),
             std::vector<float>(size(T * s.M * s.M))};
  hc_pre_fwd(ctx, s, c.weights(), c.x.data() + first * s.M * s.D, out.y.data(), out.post.data(),
             out.comb.data());
  return out;
}

TEST(HyperConnectionTest, SplitAndSinkhornGiveThePublishedNumbers) {
  // x is chosen so that m_n = fn_n exactly: one stream element of 2 in four makes rms(u) = 1.
  Case c = make_case(1, 4, 1, false, 1);
  c.s.norm_eps = 0;
  c.x = {2, 0, 0, 0};
  c.scale = {0.5f, 0.8f, 1.2f};
  for (int64_t n = 0; n < 24; ++n) {
    const double m = 0.1 * static_cast<double>((7 * n) % 11 - 5);
    c.fn[size(c.layout().index(n, 0))] = static_cast<float>(m / 2);
    c.base[size(n)] = static_cast<float>(0.05 * static_cast<double>(n % 5 - 2));
  }
  // y = 2 * pre_0, so moving the 2 shows each pre in turn.
  const std::vector<double> pre = {0.4133834, 0.5124984, 0.4750218, 0.5744435};
  const std::vector<double> post = {1.0897578, 0.8316190, 1.1341858, 1.0000000};
  const std::vector<double> comb = {
      0.2100180, 0.3758593, 0.2313209, 0.1828008, 0.2657625, 0.1270562, 0.3758593, 0.2313209,
      0.1879154, 0.3363031, 0.2657625, 0.2100181, 0.3363031, 0.1607803, 0.1270563, 0.3758592};
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (int64_t i = 0; i < 4; ++i) {
      Case moved = c;
      moved.x.assign(4, 0.0f);
      moved.x[size(i)] = 2;
      for (int64_t n = 0; n < 24; ++n) {
        moved.fn[size(c.layout().index(n, i))] = c.fn[size(c.layout().index(n, 0))];
      }
      const PreOut out = run_pre(ctx, moved, 0, 1);
      // 7 published decimals, plus a few roundings of values near 1.
      EXPECT_NEAR(out.y[0] / 2, pre[size(i)], 3e-7) << name << " stream " << i;
      expect_close(out.post, post, 3e-7, 0, name);
      expect_close(out.comb, comb, 3e-7, 0, name);
    }
  });
}

TEST(HyperConnectionTest, PreMatchesTheFp64Reference) {
  struct Shape {
    int64_t T, M, D;
  };
  for (const Shape& shape :
       {Shape{1, 4, 512}, Shape{37, 4, 40}, Shape{5, 4, 1100}, Shape{3, 1, 7}, Shape{18, 2, 33},
        Shape{2, 3, 16}, Shape{19, 5, 9}, Shape{2, 8, 300}}) {
    const Case c = make_case(shape.T, shape.M, shape.D, false, 7);
    const HcPreRef ref = hc_pre_ref(c.s, c.ref_weights(), to_double(c.x));
    // A product of K terms errs by at most K roundings of sum |fn u| <= K * (2/sqrt(K)) * 2; with
    // rms(u) > 1 and scale <= 1.5 a logit errs by less than 6 sqrt(K) * K' * eps, where K' = terms
    // of a split + number of splits. Roundings are random: sqrt(K') is used, and 8 for the rest.
    const double K = static_cast<double>(shape.M * shape.D);
    const double chain = std::min(K, 1024.0) + K / 1024;
    const double logit_error = (6 * std::sqrt(chain) + 8) * 2 * kEps;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const PreOut out = run_pre(ctx, c, 0, c.s.T);
      expect_close(out.post, ref.post, logit_error, 4 * kEps, name + " post");
      // 39 normalisations contract logit errors; each adds a few roundings of a value below 1.
      expect_close(out.comb, ref.comb, logit_error + 39 * 2 * kEps, 0, name + " comb");
      // y sums M products of |x| <= 2 with pre <= 1.
      expect_close(out.y, ref.y, 2 * static_cast<double>(shape.M) * (logit_error + 4 * kEps), 0,
                   name + " y");
    });
  }
}

TEST(HyperConnectionTest, CombIsDoublyStochastic) {
  Case c = make_case(50, 4, 24, false, 3);
  c.scale[2] = 0.1f;  // logits close to each other converge in a few iterations
  for (float& b : c.base) b *= 0.5f;
  ThreadPool pool(1);
  const PreOut out = run_pre({&pool, detect_cpu_isa()}, c, 0, c.s.T);
  for (int64_t t = 0; t < c.s.T; ++t) {
    for (int64_t a = 0; a < 4; ++a) {
      double row = 0, column = 0;
      for (int64_t b = 0; b < 4; ++b) {
        row += out.comb[size(t * 16 + a * 4 + b)];
        column += out.comb[size(t * 16 + b * 4 + a)];
      }
      EXPECT_NEAR(column, 1, 1e-5)
          << "token " << t << " column " << a;  // ends on columns, hc_eps 1e-6
      EXPECT_NEAR(row, 1, 1e-5) << "token " << t << " row " << a;
    }
  }
}

TEST(HyperConnectionTest, ForwardBitsDoNotDependOnBatchThreadsOrInstructionSet) {
  for (const int64_t M : {4, 3}) {
    const Case c = make_case(37, M, M == 4 ? 1100 : 21, false, 11);
    const Case h = make_case(37, M, M == 4 ? 1100 : 21, true, 12);
    const int64_t D = c.s.D;
    ThreadPool one(1);
    const ExecContext base = base_context(&one);
    const PreOut expected = run_pre(base, c, 0, c.s.T);
    std::vector<float> out_expected(size(c.s.T * M * D)), head_expected(size(c.s.T * D));
    hc_post_fwd(base, c.s, c.x.data(), expected.y.data(), expected.post.data(),
                expected.comb.data(), out_expected.data());
    hc_head_fwd(base, h.s, h.weights(), h.x.data(), head_expected.data());
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const PreOut whole = run_pre(ctx, c, 0, c.s.T);
      expect_same_bits(whole.y, expected.y, name + " y");
      expect_same_bits(whole.post, expected.post, name + " post");
      expect_same_bits(whole.comb, expected.comb, name + " comb");
      PreOut pieces;
      std::vector<float> out, head(size(c.s.T * D));
      int64_t first = 0;
      for (const int64_t T : {1, 5, 16, 2, 13}) {
        const PreOut piece = run_pre(ctx, c, first, T);
        HcShape s = c.s;
        s.T = T;
        std::vector<float> o(size(T * M * D));
        hc_post_fwd(ctx, s, c.x.data() + first * M * D, piece.y.data(), piece.post.data(),
                    piece.comb.data(), o.data());
        hc_head_fwd(ctx, s, h.weights(), h.x.data() + first * M * D, head.data() + first * D);
        pieces.y.insert(pieces.y.end(), piece.y.begin(), piece.y.end());
        pieces.post.insert(pieces.post.end(), piece.post.begin(), piece.post.end());
        pieces.comb.insert(pieces.comb.end(), piece.comb.begin(), piece.comb.end());
        out.insert(out.end(), o.begin(), o.end());
        first += T;
      }
      ASSERT_EQ(first, c.s.T);
      expect_same_bits(pieces.y, expected.y, name + " y in pieces");
      expect_same_bits(pieces.post, expected.post, name + " post in pieces");
      expect_same_bits(pieces.comb, expected.comb, name + " comb in pieces");
      expect_same_bits(out, out_expected, name + " out");
      expect_same_bits(head, head_expected, name + " head");
    });
  }
}

TEST(HyperConnectionTest, PostAndHeadMatchTheFp64Reference) {
  for (const int64_t M : {1, 4, 7}) {
    const Case c = make_case(6, M, 45, true, 21);
    const int64_t D = c.s.D;
    const auto f = random_floats(c.s.T * D, -2, 2, 31), post = random_floats(c.s.T * M, 0, 2, 32),
               comb = random_floats(c.s.T * M * M, 0, 1, 33);
    const auto out_ref =
        hc_post_ref(c.s, to_double(c.x), to_double(f), to_double(post), to_double(comb));
    const auto h_ref = hc_head_ref(c.s, c.ref_weights(), to_double(c.x));
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> out(size(c.s.T * M * D)), h(size(c.s.T * D));
      hc_post_fwd(ctx, c.s, c.x.data(), f.data(), post.data(), comb.data(), out.data());
      hc_head_fwd(ctx, c.s, c.weights(), c.x.data(), h.data());
      const double terms = static_cast<double>(M) + 1;
      // (M + 1) roundings of partial sums no larger than 4 + 2 M.
      expect_close(out, out_ref, terms * (4 + 2 * terms) * kEps, 0, name + " out");
      const double logit_error = (6 * std::sqrt(45.0 * static_cast<double>(M)) + 8) * 2 * kEps;
      expect_close(h, h_ref, 2 * terms * (logit_error + 4 * kEps), 0, name + " head");
    });
  }
}

TEST(HyperConnectionTest, ZeroTokensTouchNothing) {
  Case c = make_case(0, 4, 8, false, 5);
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    hc_pre_fwd(ctx, c.s, c.weights(), nullptr, nullptr, nullptr, nullptr);
    hc_post_fwd(ctx, c.s, nullptr, nullptr, nullptr, nullptr, nullptr);
    std::vector<float> g(c.fn.size(), 3.0f);
    const HcGrads grads{g.data(), g.data(), g.data()};
    hc_pre_bwd(ctx, c.s, c.weights(), nullptr, nullptr, nullptr, nullptr, nullptr, grads);
    expect_same_bits(g, std::vector<float>(c.fn.size(), 3.0f), "gradients");
  });
}

TEST(HyperConnectionTest, UnsupportedStreamCountsAreRefused) {
  Case c = make_case(1, 4, 8, false, 5);
  ThreadPool pool(1);
  const ExecContext ctx{&pool, CpuIsa::kAvx2};
  for (const int64_t M : {0, 9}) {
    c.s.M = M;
    try {
      hc_pre_fwd(ctx, c.s, c.weights(), nullptr, nullptr, nullptr, nullptr);
      FAIL() << "M = " << M;
    } catch (const UserError& e) {
      EXPECT_NE(std::string(e.what()).find("hc_mult must be 1 to 8, got"), std::string::npos);
    }
  }
  c.s.M = 4;
  c.s.sinkhorn_iters = 0;
  EXPECT_THROW(hc_pre_fwd(ctx, c.s, c.weights(), nullptr, nullptr, nullptr, nullptr), UserError);
}

// ---- backward ----

double weighted_sum(const std::vector<double>& values, const std::vector<float>& weights) {
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

struct PreGrads {
  std::vector<float> dx, fn, base, scale;
};

/// dx starts at `dx0` and the weights' gradients at `start`; tokens [first, first + T).
void run_pre_bwd(const ExecContext& ctx, const Case& c, const std::vector<float>& dy,
                 const std::vector<float>& dpost, const std::vector<float>& dcomb, int64_t first,
                 int64_t T, PreGrads& g) {
  HcShape s = c.s;
  s.T = T;
  const int64_t M = s.M, D = s.D;
  hc_pre_bwd(ctx, s, c.weights(), c.x.data() + first * M * D, dy.data() + first * D,
             dpost.data() + first * M, dcomb.data() + first * M * M, g.dx.data() + first * M * D,
             {g.fn.data(), g.base.data(), g.scale.data()});
}

TEST(HyperConnectionTest, PreBackwardMatchesCentralDifferences) {
  for (const int64_t M : {4, 2}) {
    Case c = make_case(3, M, 5, false, 41);
    const int64_t D = c.s.D, T = c.s.T, K = M * D;
    const auto dy = random_floats(T * D, -1, 1, 42), dpost = random_floats(T * M, -1, 1, 43),
               dcomb = random_floats(T * M * M, -1, 1, 44);
    HcRefWeights w = c.ref_weights();
    std::vector<double> x = to_double(c.x);
    const auto loss = [&] {
      const HcPreRef out = hc_pre_ref(c.s, w, x);
      return weighted_sum(out.y, dy) + weighted_sum(out.post, dpost) +
             weighted_sum(out.comb, dcomb);
    };
    const double step = 1e-5;  // truncation ~ step^2, rounding ~ 1e-16 / step
    const auto dx = central_differences(x, step, loss);
    const auto dfn = central_differences(w.fn, step, loss);
    const auto dbase = central_differences(w.base, step, loss);
    const auto dscale = central_differences(w.scale, step, loss);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      PreGrads g{std::vector<float>(size(T * K), 0.25f), std::vector<float>(c.fn.size()),
                 std::vector<float>(size(c.N)), std::vector<float>(3)};
      run_pre_bwd(ctx, c, dy, dpost, dcomb, 0, T, g);
      for (float& v : g.dx) v -= 0.25f;  // it is added to what is there
      std::vector<float> fn(size(c.N * K));
      for (int64_t n = 0; n < c.N; ++n) {
        for (int64_t k = 0; k < K; ++k) fn[size(n * K + k)] = g.fn[size(c.layout().index(n, k))];
      }
      // Sums of tens of terms of order 1 through 39 normalisations, each of a few roundings.
      const double atol = 39 * 4 * kEps;
      expect_close(g.dx, dx, atol, 1e-5, name + " dx");
      expect_close(fn, dfn, atol, 1e-5, name + " dfn");
      expect_close(g.base, dbase, atol, 1e-5, name + " dbase");
      expect_close(g.scale, dscale, atol, 1e-5, name + " dscale");
    });
  }
}

TEST(HyperConnectionTest, PostBackwardMatchesCentralDifferences) {
  for (const int64_t M : {4, 3}) {
    const Case c = make_case(2, M, 19, false, 51);
    const int64_t D = c.s.D, T = c.s.T;
    const auto f = random_floats(T * D, -2, 2, 52), post = random_floats(T * M, 0, 2, 53),
               comb = random_floats(T * M * M, 0, 1, 54),
               dout = random_floats(T * M * D, -1, 1, 55);
    std::vector<double> xd = to_double(c.x), fd = to_double(f), pd = to_double(post),
                        cd = to_double(comb);
    const auto loss = [&] { return weighted_sum(hc_post_ref(c.s, xd, fd, pd, cd), dout); };
    const auto dx_ref = central_differences(xd, 1e-3, loss);  // linear in each: no truncation
    const auto df_ref = central_differences(fd, 1e-3, loss);
    const auto dpost_ref = central_differences(pd, 1e-3, loss);
    const auto dcomb_ref = central_differences(cd, 1e-3, loss);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> dx(c.x.size()), df(f.size()), dpost(post.size()), dcomb(comb.size());
      hc_post_bwd(ctx, c.s, c.x.data(), f.data(), post.data(), comb.data(), dout.data(), df.data(),
                  dpost.data(), dcomb.data(), dx.data());
      const double row = static_cast<double>(D) * 2 * kEps, mix = 4 * 2 * 4 * kEps;
      expect_close(dx, dx_ref, mix, 0, name + " dx");
      expect_close(df, df_ref, mix, 0, name + " df");
      expect_close(dpost, dpost_ref, row, 0, name + " dpost");
      expect_close(dcomb, dcomb_ref, row, 0, name + " dcomb");
    });
  }
}

TEST(HyperConnectionTest, HeadBackwardMatchesCentralDifferences) {
  Case c = make_case(3, 4, 6, true, 61);
  const int64_t D = c.s.D, T = c.s.T, K = 4 * D;
  const auto dh = random_floats(T * D, -1, 1, 62);
  HcRefWeights w = c.ref_weights();
  std::vector<double> x = to_double(c.x);
  const auto loss = [&] { return weighted_sum(hc_head_ref(c.s, w, x), dh); };
  const auto dx_ref = central_differences(x, 1e-5, loss);
  const auto dfn_ref = central_differences(w.fn, 1e-5, loss);
  const auto dbase_ref = central_differences(w.base, 1e-5, loss);
  const auto dscale_ref = central_differences(w.scale, 1e-5, loss);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> dx(size(T * K), 99.0f), fn(c.fn.size()), base(4), scale(1), rows;
    hc_head_bwd(ctx, c.s, c.weights(), c.x.data(), dh.data(), dx.data(),
                {fn.data(), base.data(), scale.data()});
    for (int64_t n = 0; n < 4; ++n) {
      for (int64_t k = 0; k < K; ++k) rows.push_back(fn[size(c.layout().index(n, k))]);
    }
    const double atol = 32 * kEps;  // sums of about 24 terms of order 1
    expect_close(dx, dx_ref, atol, 1e-5, name + " dx");
    expect_close(rows, dfn_ref, atol, 1e-5, name + " dfn");
    expect_close(base, dbase_ref, atol, 1e-5, name + " dbase");
    expect_close(scale, dscale_ref, atol, 1e-5, name + " dscale");
  });
}

TEST(HyperConnectionTest, BackwardBitsDoNotDependOnMicroBatchesThreadsOrInstructionSet) {
  const Case c = make_case(37, 4, 72, false, 71);
  const int64_t D = c.s.D, T = c.s.T, M = 4;
  const auto dy = random_floats(T * D, -1, 1, 72), dpost = random_floats(T * M, -1, 1, 73),
             dcomb = random_floats(T * M * M, -1, 1, 74),
             dout = random_floats(T * M * D, -1, 1, 75);
  const auto start = [&] {
    return PreGrads{std::vector<float>(c.x.size(), 0.5f), std::vector<float>(c.fn.size()),
                    std::vector<float>(size(c.N)), std::vector<float>(3)};
  };
  const auto post_grads = [&](const ExecContext& ctx) {
    std::vector<float> all(size(T * (D + M + M * M + M * D)));
    float* p = all.data();
    hc_post_bwd(ctx, c.s, c.x.data(), dy.data(), dpost.data(), dcomb.data(), dout.data(), p,
                p + T * D, p + T * (D + M), p + T * (D + M + M * M));
    return all;
  };
  ThreadPool one(1);
  const ExecContext base = base_context(&one);
  PreGrads expected = start();
  run_pre_bwd(base, c, dy, dpost, dcomb, 0, T, expected);
  const auto post_expected = post_grads(base);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{37}, {1, 20, 16}}) {
      PreGrads g = start();
      int64_t first = 0;
      for (const int64_t n : sizes) {
        run_pre_bwd(ctx, c, dy, dpost, dcomb, first, n, g);
        first += n;
      }
      expect_same_bits(g.dx, expected.dx, name + " dx");
      expect_same_bits(g.fn, expected.fn, name + " dfn");
      expect_same_bits(g.base, expected.base, name + " dbase");
      expect_same_bits(g.scale, expected.scale, name + " dscale");
    }
    expect_same_bits(post_grads(ctx), post_expected, name + " post");
  });
}

}  // namespace
}  // namespace fathom
