#include "fathom/kernels/quant/quant.h"

#include <bit>
#include <limits>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/quant/entry_format.h"
#include "fathom/kernels/quant/quant_ref.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// Random floats of every exponent that BF16 arithmetic of a model could meet, and hard cases.
std::vector<float> hard_floats(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> x;
  while (static_cast<int64_t>(x.size()) < n) {
    const auto sign_and_mantissa = static_cast<uint32_t>(generator()) & 0x807FFFFFu;
    const uint32_t exponent = 60 + static_cast<uint32_t>(generator() % 130);
    uint32_t bits = sign_and_mantissa | exponent << 23;
    if (generator() % 4 == 0) bits &= 0xFFFF8000u;  // on a tie of BF16, or on a BF16 value
    if (generator() % 4 == 0) bits &= 0xFFF80000u;  // of E4M3
    x.push_back(std::bit_cast<float>(bits));
  }
  return x;
}

TEST(QuantTest, Bf16RoundsToNearestEvenLikeTheReference) {
  std::vector<float> x = hard_floats(5003, 1);
  x.insert(x.end(), {0.0f, -0.0f, 1.0f, 1.00390625f, 1.01171875f, 3.3961775e38f, -1e-30f});
  std::vector<float> want;
  for (const float v : x) want.push_back(static_cast<float>(bf16_ref(static_cast<double>(v))));
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> got(x.size());
    round_bf16(ctx, x.data(), static_cast<int64_t>(x.size()), got.data());
    expect_same_bits(got, want, name);
    std::vector<float> in_place = x;
    round_bf16(ctx, in_place.data(), static_cast<int64_t>(x.size()), in_place.data());
    expect_same_bits(in_place, want, name + " in place");
  });
  std::vector<float> serial(x.size());
  round_bf16_serial(x.data(), static_cast<int64_t>(x.size()), serial.data());
  expect_same_bits(serial, want, "serial");
}

TEST(QuantTest, Bf16KeepsWhatIsNotANumber) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> x = {kInf, -kInf, std::nanf(""), 3.4e38f};
    round_bf16(ctx, x.data(), 4, x.data());
    EXPECT_EQ(x[0], kInf) << name;
    EXPECT_EQ(x[1], -kInf) << name;
    EXPECT_TRUE(std::isnan(x[2])) << name;
    EXPECT_EQ(x[3], kInf) << name;  // above the largest BF16 value and its half step
  });
}

TEST(QuantTest, Fp8RowsAreTheReference) {
  struct Case {
    int64_t n, block, stride;
  };
  for (const Case& c : {Case{448, 64, 512}, {128, 128, 128}, {40, 64, 40}, {200, 64, 207}}) {
    const int64_t rows = 9;
    std::vector<float> x = hard_floats(rows * c.stride, 3);
    for (int64_t i = 0; i < c.stride; ++i) {
      x[i] = 1e-9f * static_cast<float>(i);  // below the least amax
      x[c.stride + i] = 0;
      x[2 * c.stride + i] = i % 3 == 0 ? -0.0f : 448.0f * 0x1p-5f;  // a power-of-two boundary
    }
    std::vector<float> want = x;
    for (int64_t r = 0; r < rows; ++r) {
      const auto at = x.begin() + r * c.stride;
      const auto row = simulate_fp8_ref({at, at + c.n}, c.block);
      for (int64_t i = 0; i < c.n; ++i) want[r * c.stride + i] = static_cast<float>(row[i]);
    }
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> got = x;
      simulate_fp8_rows(ctx, {.x = got.data(),
                              .x_stride = c.stride,
                              .out = got.data(),
                              .out_stride = c.stride,
                              .num_rows = rows,
                              .n = c.n,
                              .block = c.block});
      expect_same_bits(got, want, name);
    });
    // The scalar function of numerics is the same rounding.
    std::vector<float> scalar(static_cast<size_t>(c.n));
    simulate_fp8(x.data() + 5 * c.stride, c.n, c.block, scalar.data());
    const auto at = want.begin() + 5 * c.stride;
    expect_same_bits(scalar, {at, at + c.n}, "simulate_fp8");
  }
}

TEST(QuantTest, Fp8RowsIntoOtherMemoryLeaveTheInputAndTheRestAlone) {
  const std::vector<float> x = hard_floats(3 * 50, 4);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> in = x, out(3 * 45, 7.0f), in_place = x;
    simulate_fp8_rows(ctx, {in.data(), 50, out.data(), 45, 3, 40, 64});
    simulate_fp8_rows(ctx, {in_place.data(), 50, in_place.data(), 50, 3, 40, 64});
    expect_same_bits(in, x, name);
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t i = 0; i < 45; ++i) {
        EXPECT_EQ(out[r * 45 + i], i < 40 ? in_place[r * 50 + i] : 7.0f) << name;
      }
    }
  });
}

TEST(QuantTest, ANaNStaysAndAnInfinitySpoilsItsBlockAlone) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> x(128, 1.0f);
    x[3] = std::nanf("");
    x[70] = kInf;
    simulate_fp8_rows(ctx, {x.data(), 128, x.data(), 128, 1, 128, 64});
    for (int i = 0; i < 128; ++i) {
      EXPECT_EQ(std::isnan(x[i]), i == 3 || i >= 64) << name << ", channel " << i;
    }
  });
}

TEST(QuantTest, HadamardRowsAreTheReferenceRoundedOnce) {
  for (const int64_t n : {1, 2, 8, 32, 128, 256}) {
    const int64_t rows = 5;
    std::vector<float> x = random_floats(rows * n, -3, 3, 5);
    round_bf16_serial(x.data(), rows * n, x.data());
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> got = x;
      hadamard_rows_bf16(ctx, rows, n, got.data());
      for (int64_t r = 0; r < rows; ++r) {
        const auto at = x.begin() + r * n;
        const std::vector<double> want = hadamard_ref(to_double({at, at + n}));
        for (int64_t i = 0; i < n; ++i) {
          const double y = want[i], g = static_cast<double>(got[r * n + i]);
          // log2(n) fp32 additions of numbers below 3 n, one product, then half a step of BF16.
          const double fp32_error = 3 * std::sqrt(static_cast<double>(n)) *
                                    (std::log2(static_cast<double>(n)) + 2) * 0x1p-24;
          ASSERT_LE(std::fabs(g - y), std::fabs(y) * 0x1p-8 + fp32_error) << name << ", n = " << n;
          ASSERT_EQ(g, bf16_ref(g)) << name;
        }
      }
    });
  }
}

TEST(QuantTest, HadamardIsItsOwnInverseUpToRounding) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  std::vector<float> x = random_floats(128, -1, 1, 6), twice = x;
  hadamard_rows_bf16(ctx, 1, 128, twice.data());
  hadamard_rows_bf16(ctx, 1, 128, twice.data());
  expect_close(twice, to_double(x), 0.03, 0, "twice");
  EXPECT_THROW(hadamard_rows_bf16(ctx, 1, 24, x.data()), InternalError);
}

TEST(QuantTest, AProductOfDecodedBlocksIsThatOfTheCodesScaled) {
  // What a W8A8 kernel computes: chains over codes, each block's sum times both scales, added up.
  const int64_t T = 7, N = 150, K = 300, block = kActivationFp8Block;
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  std::vector<float> x = random_floats(T * K, -5, 5, 8), w = random_floats(N * K, -0.1f, 0.1f, 9);
  for (int64_t i = 0; i < T * K; i += 7) x[i] *= 0x1p-9f;
  std::vector<uint8_t> codes(w.size()), scales(2 * 3);
  quantise_fp8(ctx, N, K, w.data(), codes.data(), scales.data());
  std::vector<float> want(static_cast<size_t>(T * N)), got(want.size());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < K; k += block) {
        const int64_t end = std::min(K, k + block);
        float amax = kFp8RowAmaxFloor, partial = 0;
        for (int64_t i = k; i < end; ++i) amax = std::max(amax, std::fabs(x[t * K + i]));
        const float scale = fp8_power_scale(amax);
        for (int64_t i = k; i < end; ++i) {
          const float code = e4m3_to_f32(f32_to_e4m3(x[t * K + i] / scale));
          partial = std::fma(code, e4m3_to_f32(codes[n * K + i]), partial);
        }
        sum += partial * (scale * e8m0_to_f32(scales[n / 128 * 3 + k / 128]));
      }
      want[t * N + n] = sum;
    }
  }
  const PanelLayout layout{N, K, 1};
  std::vector<float> panels(static_cast<size_t>(layout.size()));
  pack_panels(w.data(), layout, panels.data());
  simulate_fp8_panels(panels.data(), layout, panels.data());
  simulate_fp8_rows(ctx, {x.data(), K, x.data(), K, T, K, block});
  linear_fwd(ctx, {.x = x.data(),
                   .x_stride = K,
                   .w_panels = panels.data(),
                   .y = got.data(),
                   .y_stride = N,
                   .T = T,
                   .N = N,
                   .K = K,
                   .k_block = block});
  expect_same_bits(got, want, "decoded");
}

TEST(QuantTest, AMatrixIsQuantisedAlikeInEitherLayout) {
  const int64_t N = 300, K = 260;
  std::vector<float> w = random_floats(N * K, -2, 2, 17);
  for (int64_t i = 0; i < N * K; i += 3) w[i] *= 0x1p-12f;
  const PanelLayout panels{N, K, 1}, where{N, K, 1, kWeightPanelRows};
  std::vector<float> packed(static_cast<size_t>(panels.size())), want(w.size());
  pack_panels(w.data(), panels, packed.data());
  simulate_fp8_panels(packed.data(), panels, packed.data());
  unpack_panels(packed.data(), panels, want.data());
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> in(static_cast<size_t>(where.size()), 0.0f), out(in.size()), got;
    for (int64_t i = 0; i < N * K; ++i) in[where.index(i / K, i % K)] = w[i];
    simulate_fp8_matrix(ctx, in.data(), where, out.data());
    for (int64_t i = 0; i < N * K; ++i) got.push_back(out[where.index(i / K, i % K)]);
    expect_same_bits(got, want, name);
  });
}

TEST(QuantTest, WeightPanelsAreTheBytesThatQuantiseFp8Writes) {
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  for (const auto& [N, K] :
       {std::pair<int64_t, int64_t>{64, 128}, {300, 260}, {17, 5}, {128, 128}}) {
    const PanelLayout layout{N, K, 1};
    std::vector<float> w = random_floats(N * K, -2, 2, 7);
    for (int64_t i = 0; i < N * K; i += 3) w[i] *= 0x1p-12f;
    std::vector<uint8_t> codes(w.size()),
        scales(static_cast<size_t>((N + 127) / 128 * ((K + 127) / 128)));
    quantise_fp8(ctx, N, K, w.data(), codes.data(), scales.data());
    std::vector<uint16_t> decoded(w.size());
    dequantise_fp8(ctx, N, K, codes.data(), scales.data(), decoded.data());
    std::vector<float> panels(static_cast<size_t>(layout.size())), out(panels.size()),
        got(w.size()), want;
    pack_panels(w.data(), layout, panels.data());
    simulate_fp8_panels(panels.data(), layout, out.data());
    unpack_panels(out.data(), layout, got.data());
    for (const uint16_t code : decoded) want.push_back(bf16_to_f32(code));
    expect_same_bits(got, want, str_cat(N, " x ", K));
    // Once quantised, nothing changes any more.
    std::vector<float> again(out.size());
    simulate_fp8_panels(out.data(), layout, again.data());
    expect_same_bits(again, out, "again");
  }
  std::vector<float> bad(16 * 2, 1.0f);
  bad[16 + 3] = kInf;
  try {
    simulate_fp8_panels(bad.data(), {16, 2, 1}, bad.data());
    ADD_FAILURE() << "no error";
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("[3, 1]"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace fathom
