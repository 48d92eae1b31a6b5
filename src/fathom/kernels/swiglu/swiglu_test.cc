#include "fathom/kernels/swiglu/swiglu.h"

#include <limits>
#include <numeric>

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/swiglu/swiglu_ref.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;

TEST(SwigluTest, ForwardAndBackwardMatchFp64WithSameBitsEverywhere) {
  for (const float limit : {10.0f, 0.0f}) {
    for (const int64_t rows : {1, 7, 300}) {
      const int64_t I = 83, n = rows * I;  // 300 rows exceed one thread's range, 83 has a tail
      auto g = random_floats(n, -14, 14, 1), u = random_floats(n, -14, 14, 2);
      const auto da = random_floats(n, -1, 1, 3);
      g[0] = 10, u[0] = -10;  // exactly on the clamp: still inside
      const auto ref = swiglu_ref(to_double(g), to_double(u), limit);
      std::vector<double> dg_ref, du_ref;
      for (size_t i = 0; i < g.size(); ++i) {
        // One-sided at the clamp: the derivative from inside.
        const double h = 1e-6, lo_g = g[i] - h, hi_g = g[i] == 10 ? g[i] : g[i] + h;
        const double lo_u = u[i] == -10 ? u[i] : u[i] - h, hi_u = u[i] + h;
        dg_ref.push_back(
            da[i] * (swiglu_ref({hi_g}, {u[i]}, limit)[0] - swiglu_ref({lo_g}, {u[i]}, limit)[0]) /
            (hi_g - lo_g));
        du_ref.push_back(
            da[i] * (swiglu_ref({g[i]}, {hi_u}, limit)[0] - swiglu_ref({g[i]}, {lo_u}, limit)[0]) /
            (hi_u - lo_u));
      }
      std::vector<float> a1, dg1, du1;
      for_each_context([&](const ExecContext& ctx, const std::string& name) {
        std::vector<float> a(g.size()), dg(g.size()), du(g.size());
        swiglu_fwd(ctx, rows, I, limit, g.data(), u.data(), a.data());
        swiglu_bwd(ctx, rows, I, limit, g.data(), u.data(), da.data(), dg.data(), du.data());
        expect_close(a, ref, 1e-30, 8 * kEps, name);  // sigmoid 4 roundings, two products
        // Values reach 200; central differences leave 1e-9 of them.
        expect_close(dg, dg_ref, 14 * 16 * kEps + 1e-6, 16 * kEps, name + " dg");
        expect_close(du, du_ref, 1e-6, 16 * kEps, name + " du");
        if (a1.empty()) a1 = a, dg1 = dg, du1 = du;
        expect_same_bits(a, a1, name);
        expect_same_bits(dg, dg1, name);
        expect_same_bits(du, du1, name);
        // Rows one at a time.
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<float> row(static_cast<size_t>(I));
          swiglu_fwd(ctx, 1, I, limit, g.data() + r * I, u.data() + r * I, row.data());
          expect_same_bits(row, std::vector<float>(a.begin() + r * I, a.begin() + (r + 1) * I),
                           name);
        }
      });
    }
  }
}

TEST(SwigluTest, ExtremeInputsAreClampedAndNaNStaysVisible) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const std::vector<float> g = {inf, 200, -200, 1, nan, 1}, u = {1, inf, 1, -inf, 1, nan};
  const std::vector<float> da(6, 1.0f);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> a(6), dg(6), du(6);
    swiglu_fwd(ctx, 1, 6, 10, g.data(), u.data(), a.data());
    swiglu_bwd(ctx, 1, 6, 10, g.data(), u.data(), da.data(), dg.data(), du.data());
    const double silu10 = 10 / (1 + std::exp(-10.0)), silu1 = 1 / (1 + std::exp(-1.0));
    const std::vector<float> finite(a.begin(), a.begin() + 4);
    expect_close(finite, {silu10, 10 * silu10, 0, -10 * silu1}, 1e-30, 8 * kEps, name);
    EXPECT_TRUE(std::isnan(a[4])) << name;
    EXPECT_TRUE(std::isnan(a[5])) << name;
    EXPECT_EQ(dg[0], 0) << name;  // beyond the gate's clamp
    EXPECT_EQ(du[1], 0) << name;  // beyond the clamp of u
    EXPECT_EQ(du[3], 0) << name;
    EXPECT_EQ(dg[2], 0) << name;  // sigma(-200) is 0
  });
}

TEST(MoeCombineTest, MatchesFp64AndItsOwnBackward) {
  const int64_t T = 40, K = 3;
  for (const int64_t D : {16, 200, 5}) {
    const auto rows = random_floats(T * K * D, -2, 2, 11), weights = random_floats(T * K, 0, 1, 12),
               shared = random_floats(T * D, -2, 2, 13), dout = random_floats(T * D, -1, 1, 14);
    // Rows are grouped by expert: a permutation of (token, slot).
    std::vector<int32_t> slot_row(static_cast<size_t>(T * K));
    for (size_t i = 0; i < slot_row.size(); ++i) {
      slot_row[i] = static_cast<int32_t>((i * 77) % slot_row.size());
    }
    const auto ref =
        moe_combine_ref(T, K, D, to_double(rows), slot_row, to_double(weights), to_double(shared));
    const auto without =
        moe_combine_ref(T, K, D, to_double(rows), slot_row, to_double(weights), {});
    std::vector<double> drows_ref(rows.size()), dweights_ref(weights.size());
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t j = 0; j < K; ++j) {
        const size_t slot = static_cast<size_t>(t * K + j);
        for (int64_t d = 0; d < D; ++d) {
          const size_t at = static_cast<size_t>(slot_row[slot] * D + d);
          const double g = dout[static_cast<size_t>(t * D + d)];
          drows_ref[at] = weights[slot] * g;
          dweights_ref[slot] += rows[at] * g;
        }
      }
    }
    std::vector<float> first;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> out(ref.size()), bare(ref.size()), drows(rows.size(), 9.0f),
          dweights(weights.size(), 9.0f);
      moe_combine_fwd(ctx, T, K, D, rows.data(), slot_row.data(), weights.data(), shared.data(),
                      out.data());
      moe_combine_fwd(ctx, T, K, D, rows.data(), slot_row.data(), weights.data(), nullptr,
                      bare.data());
      moe_combine_bwd(ctx, T, K, D, rows.data(), slot_row.data(), weights.data(), dout.data(),
                      drows.data(), dweights.data());
      expect_close(out, ref, 4 * 8 * kEps, 0, name);  // 4 roundings of partial sums below 8
      expect_close(bare, without, 3 * 6 * kEps, 0, name);
      expect_close(drows, drows_ref, 0, kEps, name);
      expect_close(dweights, dweights_ref, static_cast<double>(D) * 2 * std::sqrt(D) * kEps, 0,
                   name);
      if (first.empty()) first = out;
      expect_same_bits(out, first, name);
      std::vector<float> single(static_cast<size_t>(D));
      for (int64_t t = 0; t < T; ++t) {
        moe_combine_fwd(ctx, 1, K, D, rows.data(), slot_row.data() + t * K, weights.data() + t * K,
                        shared.data() + t * D, single.data());
        expect_same_bits(single, std::vector<float>(out.begin() + t * D, out.begin() + (t + 1) * D),
                         name + " one token");
      }
    });
  }
}

TEST(MoeCombineTest, ZeroRowsTouchNothing) {
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    swiglu_fwd(ctx, 0, 8, 10, nullptr, nullptr, nullptr);
    swiglu_bwd(ctx, 0, 8, 10, nullptr, nullptr, nullptr, nullptr, nullptr);
    moe_combine_fwd(ctx, 0, 2, 8, nullptr, nullptr, nullptr, nullptr, nullptr);
    moe_combine_bwd(ctx, 0, 2, 8, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  });
}

}  // namespace
}  // namespace fathom
