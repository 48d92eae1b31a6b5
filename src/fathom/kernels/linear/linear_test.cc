#include "fathom/kernels/linear/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/linear/linear_ref.h"

namespace fathom {
namespace {

struct Shape {
  int64_t T, N, K;
  int parts = 1;
};

// Model shapes, odd ones, ragged panels, one token, none.
const Shape kShapes[] = {{1, 64, 128},     {1, 512, 64},     {7, 33, 50},     {100, 512, 64},
                         {3, 128, 128, 8}, {37, 100, 64, 4}, {0, 16, 16},     {65, 17, 5},
                         {130, 24, 512},   {2, 1, 1},        {31, 16, 32, 2}, {6, 200, 13}};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

/// The order that the header promises, one element at a time.
float forward_element(const float* x, const float* w, int64_t K, int parts) {
  float sums[8];
  for (int i = 0; i < parts; ++i) {
    float acc = 0.0f;
    for (int64_t k = i * K / parts; k < (i + 1) * K / parts; ++k) acc = std::fma(x[k], w[k], acc);
    sums[i] = acc;
  }
  for (int width = 1; width < parts; width *= 2) {
    for (int i = 0; i < parts; i += 2 * width) sums[i] += sums[i + width];
  }
  return sums[0];
}

TEST(LinearTest, ForwardHasThePromisedOrderBitForBit) {
  for (const Shape& s : kShapes) {
    const auto x = random_floats(s.T * s.K, -1, 1, 1), w = random_floats(s.N * s.K, -1, 1, 2);
    const PanelLayout layout{s.N, s.K, 1};
    std::vector<float> panels(static_cast<size_t>(layout.size()));
    pack_panels(w.data(), layout, panels.data());
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      // Rows of y stand apart; what lies between them may not be touched.
      std::vector<float> y(static_cast<size_t>(s.T * (s.N + 3)), 99.0f);
      linear_fwd(ctx, {.x = x.data(),
                       .x_stride = s.K,
                       .w_panels = panels.data(),
                       .y = y.data(),
                       .y_stride = s.N + 3,
                       .T = s.T,
                       .N = s.N,
                       .K = s.K,
                       .num_parts = s.parts});
      for (int64_t t = 0; t < s.T; ++t) {
        for (int64_t n = 0; n < s.N + 3; ++n) {
          const float got = y[static_cast<size_t>(t * (s.N + 3) + n)];
          const float want =
              n < s.N ? forward_element(x.data() + t * s.K, w.data() + n * s.K, s.K, s.parts)
                      : 99.0f;
          ASSERT_TRUE(same_bits(got, want))
              << name << " T " << s.T << " N " << s.N << " K " << s.K << " at " << t << "," << n
              << ": " << got << " " << want;
        }
      }
    });
  }
}

TEST(LinearTest, GradientsContinueTheirChainsBitForBit) {
  for (const Shape& s : kShapes) {
    const auto x = random_floats(s.T * s.K, -1, 1, 1), w = random_floats(s.N * s.K, -1, 1, 2);
    const auto dy = random_floats(s.T * s.N, -1, 1, 3), dx0 = random_floats(s.T * s.K, -1, 1, 4);
    const PanelLayout layout{s.N, s.K, 1};
    std::vector<float> panels(static_cast<size_t>(layout.size()));
    pack_panels(w.data(), layout, panels.data());
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      for (bool accumulate : {false, true}) {
        std::vector<float> dx = dx0;
        linear_bwd_input(ctx, {.dy = dy.data(),
                               .dy_stride = s.N,
                               .w_panels = panels.data(),
                               .dx = dx.data(),
                               .dx_stride = s.K,
                               .T = s.T,
                               .N = s.N,
                               .K = s.K,
                               .accumulate = accumulate});
        for (int64_t i = 0; i < s.T * s.K; ++i) {
          float acc = accumulate ? dx0[static_cast<size_t>(i)] : 0.0f;
          for (int64_t n = 0; n < s.N; ++n) {
            acc = std::fma(dy[static_cast<size_t>(i / s.K * s.N + n)],
                           w[static_cast<size_t>(n * s.K + i % s.K)], acc);
          }
          ASSERT_TRUE(same_bits(dx[static_cast<size_t>(i)], acc)) << name << " dx " << i;
        }
      }
      std::vector<float> dw = panels, row_major(w.size());
      linear_bwd_weight(ctx, {.x = x.data(),
                              .x_stride = s.K,
                              .dy = dy.data(),
                              .dy_stride = s.N,
                              .dw_panels = dw.data(),
                              .T = s.T,
                              .N = s.N,
                              .K = s.K});
      unpack_panels(dw.data(), layout, row_major.data());
      for (int64_t i = 0; i < s.N * s.K; ++i) {
        float acc = w[static_cast<size_t>(i)];
        for (int64_t t = 0; t < s.T; ++t) {
          acc = std::fma(dy[static_cast<size_t>(t * s.N + i / s.K)],
                         x[static_cast<size_t>(t * s.K + i % s.K)], acc);
        }
        ASSERT_TRUE(same_bits(row_major[static_cast<size_t>(i)], acc)) << name << " dw " << i;
      }
      for (int64_t n = s.N; n % kPanelRows != 0; ++n) {  // padding of the last panel
        for (int64_t k = 0; k < s.K; ++k)
          ASSERT_EQ(dw[static_cast<size_t>(layout.index(n, k))], 0.0f);
      }
    });
  }
}

TEST(LinearTest, AllThreeProductsAgreeWithTheReference) {
  for (const Shape& s : kShapes) {
    const auto x = random_floats(s.T * s.K, -1, 1, 1), w = random_floats(s.N * s.K, -1, 1, 2);
    const auto dy = random_floats(s.T * s.N, -1, 1, 3);
    const PanelLayout layout{s.N, s.K, 1};
    std::vector<float> panels(static_cast<size_t>(layout.size())), zeros(panels.size());
    pack_panels(w.data(), layout, panels.data());
    ThreadPool pool(1);
    const ExecContext ctx{&pool, detect_cpu_isa()};
    std::vector<float> y(static_cast<size_t>(s.T * s.N)), dx(x.size()), dw(w.size());
    linear_fwd(ctx, {x.data(), s.K, panels.data(), y.data(), s.N, s.T, s.N, s.K, s.parts});
    linear_bwd_input(ctx, {dy.data(), s.N, panels.data(), dx.data(), s.K, s.T, s.N, s.K});
    linear_bwd_weight(ctx, {x.data(), s.K, dy.data(), s.N, zeros.data(), s.T, s.N, s.K});
    unpack_panels(zeros.data(), layout, dw.data());
    // A chain of n products of values below 1 errs by at most n·eps·n; it is far smaller in
    // practice.
    auto expect_near = [&](const std::vector<float>& got, const std::vector<double>& want,
                           int64_t n) {
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], 6e-8 * static_cast<double>(n * n + 1));
      }
    };
    expect_near(y, linear_ref(to_double(x), to_double(w), s.T, s.N, s.K), s.K);
    expect_near(dx, linear_bwd_input_ref(to_double(dy), to_double(w), s.T, s.N, s.K), s.N);
    expect_near(dw, linear_bwd_weight_ref(to_double(dy), to_double(x), s.T, s.N, s.K), s.T);
  }
}

TEST(LinearTest, CuttingABatchChangesNoBits) {
  const int64_t T = 97, N = 48, K = 40;
  const auto x = random_floats(T * K, -1, 1, 1), dy = random_floats(T * N, -1, 1, 2);
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  const PanelLayout layout{N, K, 1};
  std::vector<float> whole(static_cast<size_t>(layout.size())), cut = whole;
  linear_bwd_weight(ctx, {x.data(), K, dy.data(), N, whole.data(), T, N, K});
  for (int64_t begin : {int64_t{0}, int64_t{13}, int64_t{60}}) {
    const int64_t end = begin == 0 ? 13 : begin == 13 ? 60 : T;
    linear_bwd_weight(
        ctx, {x.data() + begin * K, K, dy.data() + begin * N, N, cut.data(), end - begin, N, K});
  }
  EXPECT_EQ(std::memcmp(whole.data(), cut.data(), whole.size() * sizeof(float)), 0);
}

TEST(LinearTest, GroupedProductsAreTheSingleOnesPerGroup) {
  const int64_t N = 64, K = 128, groups = 5;
  const int64_t row_begin[] = {0, 3, 3, 40, 41, 60};
  const int64_t R = row_begin[groups];
  const auto x = random_floats(R * K, -1, 1, 1), dy = random_floats(R * N, -1, 1, 2);
  const PanelLayout layout{N, K, 1};
  std::vector<std::vector<float>> panels,
      dw(groups, std::vector<float>(static_cast<size_t>(layout.size())));
  std::vector<const float*> w_pointers;
  std::vector<float*> dw_pointers;
  for (int64_t g = 0; g < groups; ++g) {
    panels.push_back(random_floats(layout.size(), -1, 1, 10 + static_cast<uint32_t>(g)));
  }
  for (int64_t g = 0; g < groups; ++g) {
    w_pointers.push_back(panels[static_cast<size_t>(g)].data());
    dw_pointers.push_back(g == 3 ? nullptr : dw[static_cast<size_t>(g)].data());
  }
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (auto& d : dw) std::fill(d.begin(), d.end(), 0.0f);
    const GroupedLinear g{groups, row_begin, N, K};
    std::vector<float> y(static_cast<size_t>(R * N)), dx(static_cast<size_t>(R * K));
    grouped_linear_fwd(ctx, g, x.data(), w_pointers.data(), y.data(), 4);
    grouped_linear_bwd_input(ctx, g, dy.data(), w_pointers.data(), dx.data(), false);
    grouped_linear_bwd_weight(ctx, g, x.data(), dy.data(), dw_pointers.data());
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t b = row_begin[i], n = row_begin[i + 1] - b;
      std::vector<float> y1(static_cast<size_t>(n * N)), dx1(static_cast<size_t>(n * K));
      std::vector<float> dw1(static_cast<size_t>(layout.size()));
      linear_fwd(
          ctx, {x.data() + b * K, K, w_pointers[static_cast<size_t>(i)], y1.data(), N, n, N, K, 4});
      linear_bwd_input(
          ctx, {dy.data() + b * N, N, w_pointers[static_cast<size_t>(i)], dx1.data(), K, n, N, K});
      if (i != 3)
        linear_bwd_weight(ctx, {x.data() + b * K, K, dy.data() + b * N, N, dw1.data(), n, N, K});
      EXPECT_EQ(std::memcmp(y.data() + b * N, y1.data(), y1.size() * sizeof(float)), 0) << name;
      EXPECT_EQ(std::memcmp(dx.data() + b * K, dx1.data(), dx1.size() * sizeof(float)), 0) << name;
      EXPECT_EQ(dw[static_cast<size_t>(i)], dw1) << name;
    }
  });
}

TEST(LinearTest, PanelsRoundTripWithBlocks) {
  const PanelLayout layout{24, 7, 3};  // blocks of 8 rows, half a panel each
  const auto w = random_floats(24 * 7, -1, 1, 5);
  std::vector<float> panels(static_cast<size_t>(layout.size())), back(w.size());
  pack_panels(w.data(), layout, panels.data());
  unpack_panels(panels.data(), layout, back.data());
  EXPECT_EQ(back, w);
  EXPECT_EQ(layout.size(), 3 * 16 * 7);
}

TEST(LinearTest, NumberOfPartsFollowsTheRule) {
  EXPECT_EQ(num_row_parallel_parts(128), 8);
  EXPECT_EQ(num_row_parallel_parts(64), 4);
  EXPECT_EQ(num_row_parallel_parts(32), 2);
  EXPECT_EQ(num_row_parallel_parts(48), 1);
  EXPECT_EQ(num_row_parallel_parts(96), 2);
  EXPECT_EQ(num_row_parallel_parts(2048, 128), 8);
  EXPECT_EQ(num_row_parallel_parts(17), 1);
}

}  // namespace
}  // namespace fathom
