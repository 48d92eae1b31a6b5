#include "fathom/kernels/rms_norm/rms_norm.h"

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/rms_norm/rms_norm_ref.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;

TEST(RmsNormTest, ReferenceGradientMatchesCentralDifferences) {
  for (const bool weighted : {true, false}) {
    const int64_t rows = 3, N = 5;
    auto x = to_double(random_floats(rows * N, -2, 2, 1));
    auto w = weighted ? to_double(random_floats(N, -1, 1, 2)) : std::vector<double>();
    const auto dy = to_double(random_floats(rows * N, -1, 1, 3));
    const auto loss = [&] {
      const auto y = rms_norm_ref(N, 1e-3, x, w);
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
      return sum;
    };
    const RmsNormGradsRef grads = rms_norm_bwd_ref(N, 1e-3, x, w, dy);
    // Second-order differences at step 1e-5: truncation and rounding both stay near 1e-9.
    expect_close(grads.dx, central_differences(x, 1e-5, loss), 1e-8, 1e-8, "dx");
    if (weighted) expect_close(grads.dw, central_differences(w, 1e-5, loss), 1e-8, 1e-8, "dw");
  }
}

TEST(RmsNormTest, ForwardAndBackwardMatchFp64WithSameBitsEverywhere) {
  const float eps = 1e-6f;
  for (const bool weighted : {true, false}) {
    for (const int64_t N : {1, 7, 64, 83, 512}) {
      const int64_t rows = N == 7 ? 5000 : 70, stride = N + 3;  // 5000 rows exceed one range
      const auto x = random_floats(rows * stride, -2, 2, 1);
      const auto w = random_floats(N, -1.5, 1.5, 2);
      const auto dy = random_floats(rows * stride, -1, 1, 3);
      std::vector<double> x_ref, dy_ref;
      for (int64_t r = 0; r < rows; ++r) {
        x_ref.insert(x_ref.end(), x.begin() + r * stride, x.begin() + r * stride + N);
        dy_ref.insert(dy_ref.end(), dy.begin() + r * stride, dy.begin() + r * stride + N);
      }
      const auto w_ref = weighted ? to_double(w) : std::vector<double>();
      const auto y_ref = rms_norm_ref(N, eps, x_ref, w_ref);
      const RmsNormGradsRef grads = rms_norm_bwd_ref(N, eps, x_ref, w_ref, dy_ref);
      const float* weight = weighted ? w.data() : nullptr;
      std::vector<float> y1, dx1, dw1;
      for_each_context([&](const ExecContext& ctx, const std::string& name) {
        std::vector<float> y(x_ref.size()), dx(x_ref.size()), dw(static_cast<size_t>(N));
        const RmsNormFwd fwd{.x = x.data(),
                             .x_stride = stride,
                             .w = weight,
                             .y = y.data(),
                             .y_stride = N,
                             .num_rows = rows,
                             .N = N,
                             .eps = eps};
        rms_norm_fwd(ctx, fwd);
        RmsNormBwd bwd{.x = x.data(),
                       .x_stride = stride,
                       .w = weight,
                       .dy = dy.data(),
                       .dy_stride = stride,
                       .dx = dx.data(),
                       .dx_stride = N,
                       .dw = dw.data(),
                       .num_rows = rows,
                       .N = N,
                       .eps = eps};
        rms_norm_bwd(ctx, bwd);
        // A sum of N squares: N/16 + 4 additions, all positive; then about five operations.
        const double rel = (static_cast<double>(N) / 16 + 12) * kEps;
        expect_close(y, y_ref, 1e-30, rel, name);
        // dx cancels: its terms are below rho*|w*dy| + |x|*rho^3*sum/N; rows of one small element
        // make rho large, so the bound follows the largest rho.
        double rho = 0, dw_terms = 0;
        for (const double v : y_ref) dw_terms = std::max(dw_terms, std::abs(v));
        for (int64_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (int64_t n = 0; n < N; ++n) {
            const double v = x_ref[static_cast<size_t>(r * N + n)];
            sum += v * v;
          }
          rho = std::max(rho, 1 / std::sqrt(sum / static_cast<double>(N) + eps));
        }
        expect_close(dx, grads.dx, 4 * 1.5 * rho * std::sqrt(static_cast<double>(N)) * rel, rel,
                     name + " dx");
        // |x*rho| <= sqrt(N); each of the chain's additions rounds a partial sum.
        const double partial = static_cast<double>(rows) * std::sqrt(static_cast<double>(N));
        expect_close(dw, grads.dw, partial * (static_cast<double>(rows) * kEps + rel), 0,
                     name + " dw");
        if (y1.empty()) y1 = y, dx1 = dx, dw1 = dw;
        expect_same_bits(y, y1, name);
        expect_same_bits(dx, dx1, name);
        expect_same_bits(dw, dw1, name);

        // Two chunks of rows, dx over dy's memory, dw continuing: the same bits.
        const int64_t cut = rows / 3;
        std::vector<float> chunked_y(y.size()), chunked_dw(dw.size()), in_place = dy;
        for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, std::pair{cut, rows}}) {
          RmsNormFwd f = fwd;
          f.x += begin * stride, f.y = chunked_y.data() + begin * N, f.num_rows = end - begin;
          rms_norm_fwd(ctx, f);
          RmsNormBwd b = bwd;
          b.x += begin * stride, b.dx_stride = stride;
          b.dy = b.dx = in_place.data() + begin * stride;
          b.dw = chunked_dw.data(), b.num_rows = end - begin;
          rms_norm_bwd(ctx, b);
        }
        std::vector<float> chunked_dx;
        for (int64_t r = 0; r < rows; ++r) {
          chunked_dx.insert(chunked_dx.end(), in_place.begin() + r * stride,
                            in_place.begin() + r * stride + N);
        }
        expect_same_bits(chunked_y, y, name + " chunked y");
        expect_same_bits(chunked_dx, dx, name + " chunked dx");
        expect_same_bits(chunked_dw, dw, name + " chunked dw");

        // Adding to dx is one addition.
        std::vector<float> sum(dx.size(), 0.25f), expected;
        for (const float d : dx) expected.push_back(0.25f + d);
        bwd.dx = sum.data(), bwd.accumulate = true, bwd.dw = nullptr;
        rms_norm_bwd(ctx, bwd);
        expect_same_bits(sum, expected, name + " accumulated dx");
      });
    }
  }
}

TEST(RmsNormTest, InPlaceNoRowsAndZeroRows) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const auto x = random_floats(4 * 20, -1, 1, 5);
    std::vector<float> y(x.size()), in_place = x;
    RmsNormFwd p{.x = x.data(),
                 .x_stride = 20,
                 .w = nullptr,
                 .y = y.data(),
                 .y_stride = 20,
                 .num_rows = 4,
                 .N = 20,
                 .eps = 1e-6f};
    rms_norm_fwd(ctx, p);
    p.x = p.y = in_place.data();
    rms_norm_fwd(ctx, p);
    expect_same_bits(in_place, y, name);
    p.num_rows = 0, p.x = nullptr, p.y = nullptr;
    rms_norm_fwd(ctx, p);

    std::vector<float> zeros(20), out(20, 1.0f);
    p.x = zeros.data(), p.y = out.data(), p.num_rows = 1;
    rms_norm_fwd(ctx, p);
    expect_same_bits(out, zeros, name + " a row of zeros");
  });
}

}  // namespace
}  // namespace fathom
