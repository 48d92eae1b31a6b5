#include "fathom/numerics/formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "fathom/base/error.h"

namespace fathom {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

uint32_t bits_of(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

float float_of(uint32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

template <typename Body>
void for_each_thread_count(Body&& body) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    body(ExecContext{&pool, detect_cpu_isa()});
  }
}

/// A format as its definition states it: codes 0 .. count-1 are the magnitudes upwards.
/// The nearest code by exhaustive search in fp64, ties to the even code, saturating.
template <typename Decode>
int nearest_code(float x, int count, Decode decode) {
  const double a = std::fabs(static_cast<double>(x));
  int best = 0;
  double best_distance = kInf;
  for (int code = 0; code < count; ++code) {
    const double distance = std::fabs(a - static_cast<double>(decode(code)));
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
      best = code, best_distance = distance;
    }
  }
  return best;
}

TEST(FormatsTest, Bf16) {
  for (uint32_t code = 0; code < 0x10000; ++code) {  // every code survives the round trip
    const float x = bf16_to_f32(static_cast<uint16_t>(code));
    if (std::isnan(x)) {
      EXPECT_EQ(f32_to_bf16(x), code | 0x40);
    } else {
      EXPECT_EQ(f32_to_bf16(x), code);
    }
  }
  EXPECT_EQ(bf16_to_f32(0x3F80), 1.0f);
  EXPECT_EQ(bf16_to_f32(0xC000), -2.0f);
  EXPECT_EQ(f32_to_bf16(float_of(0x3F808000)), 0x3F80);  // tie: down to even
  EXPECT_EQ(f32_to_bf16(float_of(0x3F808001)), 0x3F81);
  EXPECT_EQ(f32_to_bf16(float_of(0x3F818000)), 0x3F82);  // tie: up to even
  EXPECT_EQ(f32_to_bf16(float_of(0x3F817FFF)), 0x3F81);
  EXPECT_EQ(f32_to_bf16(float_of(0x7F7FFFFF)), 0x7F80);  // largest fp32 rounds to infinity
  EXPECT_EQ(f32_to_bf16(float_of(0x7F7F7FFF)), 0x7F7F);
  EXPECT_EQ(f32_to_bf16(-kInf), 0xFF80);
  EXPECT_EQ(f32_to_bf16(float_of(0x7F800001)), 0x7FC0);  // a NaN whose upper bits are infinity's
  EXPECT_EQ(f32_to_bf16(float_of(0xFFFFFFFF)), 0xFFFF);
  EXPECT_EQ(f32_to_bf16(float_of(0x00008001)), 0x0001);  // subnormal
  EXPECT_EQ(round_to_bf16(3.15625f), 3.15625f);
  EXPECT_EQ(round_to_bf16(1.00390625f), 1.0f);
}

TEST(FormatsTest, F16) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const int exponent = (code >> 10) & 31, mantissa = code & 0x3FF;
    const double sign = (code & 0x8000) != 0 ? -1 : 1;
    const float x = f16_to_f32(static_cast<uint16_t>(code));
    EXPECT_EQ(std::signbit(x), sign < 0);
    if (exponent == 31) {
      EXPECT_TRUE(mantissa == 0 ? std::isinf(x) : std::isnan(x)) << code;
    } else if (exponent == 0) {
      EXPECT_EQ(x, sign * std::ldexp(mantissa, -24)) << code;
    } else {
      EXPECT_EQ(x, sign * std::ldexp(1024 + mantissa, exponent - 25)) << code;
    }
  }
}

TEST(FormatsTest, E4m3Decode) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    const double sign = code >= 128 ? -1 : 1;
    const float x = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 127) == 127) {
      EXPECT_TRUE(std::isnan(x));
    } else {
      EXPECT_EQ(x, sign * (exponent == 0 ? std::ldexp(mantissa, -9)
                                         : std::ldexp(8 + mantissa, exponent - 10)));
      EXPECT_EQ(std::signbit(x), code >= 128);
      EXPECT_EQ(f32_to_e4m3(x), code);
    }
  }
  EXPECT_EQ(e4m3_to_f32(0x7E), 448.0f);
  EXPECT_EQ(e4m3_to_f32(0x01), 0x1p-9f);
}

TEST(FormatsTest, E4m3EncodeIsNearestEvenAndSaturates) {
  const auto decode = [](int code) { return e4m3_to_f32(static_cast<uint8_t>(code)); };
  const auto check = [&](float x) {
    ASSERT_EQ(f32_to_e4m3(x), nearest_code(x, 127, decode)) << x;
    ASSERT_EQ(f32_to_e4m3(-x), nearest_code(x, 127, decode) | 128) << -x;
  };
  for (uint32_t bits = bits_of(0x1p-12f); bits < bits_of(1000.0f); bits += 4099) {
    check(float_of(bits));
  }
  for (int code = 0; code < 126; ++code) {  // every midpoint and its neighbours
    const float middle = (decode(code) + decode(code + 1)) / 2;
    check(middle);
    check(std::nextafter(middle, 0.0f));
    check(std::nextafter(middle, kInf));
  }
  for (const float x : {0.0f, 1e-45f, 0x1p-10f, 448.0f, 463.9f, 464.0f, 1e30f, kInf}) check(x);
  EXPECT_EQ(f32_to_e4m3(kNaN), 0x7F);
  EXPECT_EQ(f32_to_e4m3(-kNaN), 0xFF);
}

TEST(FormatsTest, E8m0) {
  EXPECT_EQ(bits_of(e8m0_to_f32(0)), 0x00400000u);
  EXPECT_EQ(e8m0_to_f32(1), 0x1p-126f);
  EXPECT_EQ(e8m0_to_f32(127), 1.0f);
  EXPECT_EQ(e8m0_to_f32(254), 0x1p127f);
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(f32_to_e8m0(e8m0_to_f32(static_cast<uint8_t>(code))), code);
  }
  for (const float x : {0.0f, 3.0f, -1.0f, 0x1p-128f, kInf, kNaN}) {
    EXPECT_THROW(f32_to_e8m0(x), InternalError) << x;
  }
}

TEST(FormatsTest, E2m1) {
  const std::vector<float> values = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const auto decode = [&](int code) { return values[static_cast<size_t>(code)]; };
  for (uint8_t code = 0; code < 8; ++code) {
    EXPECT_EQ(e2m1_to_f32(code), values[code]);
    EXPECT_EQ(e2m1_to_f32(code | 8), -values[code]);
    EXPECT_TRUE(std::signbit(e2m1_to_f32(code | 8)));
    EXPECT_EQ(f32_to_e2m1(values[code]), code);
    EXPECT_EQ(f32_to_e2m1(-values[code]), code | 8);
  }
  for (int i = 0; i < 8000; ++i) {  // hits every midpoint
    const float x = static_cast<float>(i) / 1024;
    ASSERT_EQ(f32_to_e2m1(x), nearest_code(x, 8, decode)) << x;
    ASSERT_EQ(f32_to_e2m1(-x), nearest_code(x, 8, decode) | 8) << x;
  }
  EXPECT_EQ(f32_to_e2m1(kInf), 7);
  EXPECT_THROW(f32_to_e2m1(kNaN), InternalError);
}

TEST(FormatsTest, NanScales) {
  const std::vector<float> good = {1, 0, kInf}, bad = {1, kNaN};
  const std::vector<uint8_t> good_codes = {0, 254}, bad_codes = {0, 255};
  EXPECT_FALSE(has_nan_scale(good.data(), 3));
  EXPECT_TRUE(has_nan_scale(bad.data(), 2));
  EXPECT_FALSE(has_nan_scale(bad.data(), 1));
  EXPECT_FALSE(has_nan_scale(good_codes.data(), 2));
  EXPECT_TRUE(has_nan_scale(bad_codes.data(), 2));
}

std::vector<uint8_t> random_bytes(size_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(generator() >> 24);
  return bytes;
}

TEST(FormatsTest, DequantiseFp8) {
  const int64_t M = 130, K = 300, blocks = 3;
  const std::vector<uint8_t> codes = random_bytes(static_cast<size_t>(M * K), 1);
  const std::vector<uint8_t> e8m0 = {127, 120, 0, 130, 133, 254};
  const std::vector<float> scales = {1, 0.3f, 1.7e-4f, 3.3e38f, 0, 1e-41f};
  for_each_thread_count([&](const ExecContext& ctx) {
    std::vector<uint16_t> out(codes.size()), from_e8m0(codes.size());
    dequantise_fp8(ctx, M, K, codes.data(), scales.data(), out.data());
    dequantise_fp8(ctx, M, K, codes.data(), e8m0.data(), from_e8m0.data());
    for (int64_t r = 0; r < M; ++r) {
      for (int64_t c = 0; c < K; ++c) {
        const size_t i = static_cast<size_t>(r * K + c);
        const size_t block = static_cast<size_t>(r / 128 * blocks + c / 128);
        const float code = e4m3_to_f32(codes[i]);
        ASSERT_EQ(out[i], f32_to_bf16(code * scales[block])) << r << ", " << c;
        ASSERT_EQ(from_e8m0[i],
                  f32_to_bf16(code * static_cast<float>(std::ldexp(1.0, e8m0[block] - 127))));
      }
    }
  });
}

TEST(FormatsTest, DequantiseFp4) {
  const int64_t M = 70, K = 96;
  const std::vector<uint8_t> packed = random_bytes(static_cast<size_t>(M * K / 2), 2);
  std::vector<uint8_t> scales = random_bytes(static_cast<size_t>(M * K / 32), 3);
  for (uint8_t& s : scales) s = static_cast<uint8_t>(s / 2 + 60);
  const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for_each_thread_count([&](const ExecContext& ctx) {
    std::vector<uint16_t> out(static_cast<size_t>(M * K));
    dequantise_fp4(ctx, M, K, packed.data(), scales.data(), out.data());
    for (int64_t r = 0; r < M; ++r) {
      for (int64_t c = 0; c < K; ++c) {
        const uint8_t byte = packed[static_cast<size_t>(r * (K / 2) + c / 2)];
        const int code = c % 2 == 0 ? byte % 16 : byte / 16;
        const double scale =
            std::ldexp(1.0, scales[static_cast<size_t>(r * (K / 32) + c / 32)] - 127);
        const double expected = (code >= 8 ? -1 : 1) * values[code % 8] * scale;
        const float actual = bf16_to_f32(out[static_cast<size_t>(r * K + c)]);
        ASSERT_EQ(actual, expected) << r << ", " << c;  // exact in BF16
        ASSERT_EQ(std::signbit(actual), code >= 8);
      }
    }
    EXPECT_THROW(dequantise_fp4(ctx, 1, 40, packed.data(), scales.data(), out.data()),
                 InternalError);
  });
}

TEST(FormatsTest, PowerScales) {
  EXPECT_EQ(fp8_power_scale(448), 1.0f);
  EXPECT_EQ(fp8_power_scale(447), 1.0f);
  EXPECT_EQ(fp8_power_scale(449), 2.0f);
  EXPECT_EQ(fp8_power_scale(3.15625f), 0x1p-7f);
  EXPECT_EQ(fp8_power_scale(1e-4f), 0x1p-22f);
  EXPECT_EQ(fp4_power_scale(6), 1.0f);
  EXPECT_EQ(fp4_power_scale(6.5f), 2.0f);
  EXPECT_EQ(fp4_power_scale(1.75f), 0x1p-1f);
  EXPECT_EQ(fp4_power_scale(6 * 0x1p-126f), 0x1p-126f);
  // Against the definition, away from rounding at powers of two.
  std::mt19937 generator(4);
  for (int i = 0; i < 10000; ++i) {
    const float amax = std::ldexp(1 + static_cast<float>(generator() >> 9) * 0x1p-23f,
                                  static_cast<int>(i % 200) - 100);
    EXPECT_EQ(fp8_power_scale(amax),
              std::exp2(std::ceil(std::log2(static_cast<double>(amax * (1.0f / 448))))));
  }
}

TEST(FormatsTest, QuantiseFp8) {
  const int64_t M = 150, K = 200, blocks = 2;
  std::mt19937 generator(5);
  std::vector<float> w(static_cast<size_t>(M * K));
  for (float& v : w) v = (static_cast<float>(generator() >> 8) * 0x1p-23f - 1) * 0.05f;
  for (int64_t r = 128; r < M; ++r) {  // one block of zeros
    for (int64_t c = 128; c < K; ++c) w[static_cast<size_t>(r * K + c)] = 0;
  }
  for_each_thread_count([&](const ExecContext& ctx) {
    std::vector<uint8_t> codes(w.size()), power_codes(w.size()), power_scales(4);
    std::vector<float> scales(4);
    quantise_fp8(ctx, M, K, w.data(), codes.data(), scales.data());
    quantise_fp8(ctx, M, K, w.data(), power_codes.data(), power_scales.data());
    for (int64_t b = 0; b < 4; ++b) {
      float amax = 1e-10f;
      bool full_scale = false;
      for (int64_t r = 0; r < M; ++r) {
        for (int64_t c = 0; c < K; ++c) {
          if (r / 128 * blocks + c / 128 != b) continue;
          amax = std::max(amax, std::fabs(w[static_cast<size_t>(r * K + c)]));
        }
      }
      const float scale = amax / 448, power = fp8_power_scale(amax);
      ASSERT_EQ(scales[static_cast<size_t>(b)], scale);
      ASSERT_EQ(e8m0_to_f32(power_scales[static_cast<size_t>(b)]), power);
      for (int64_t r = 0; r < M; ++r) {
        for (int64_t c = 0; c < K; ++c) {
          if (r / 128 * blocks + c / 128 != b) continue;
          const size_t i = static_cast<size_t>(r * K + c);
          ASSERT_EQ(codes[i], f32_to_e4m3(w[i] / scale));
          ASSERT_EQ(power_codes[i], f32_to_e4m3(w[i] / power));
          full_scale = full_scale || (codes[i] & 127) == 0x7E;
          // Half a step of three mantissa bits, or of the subnormals.
          const float bound = std::max(std::fabs(w[i]) * 0x1p-4f, scale * 0x1p-10f) * 1.0001f;
          ASSERT_LE(std::fabs(e4m3_to_f32(codes[i]) * scale - w[i]), bound);
        }
      }
      EXPECT_EQ(full_scale, b != 3);  // the largest magnitude of a block uses the largest code
    }
    // Values that came out of FP8 with power-of-two scales go back to themselves.
    std::vector<uint16_t> bf16(w.size());
    dequantise_fp8(ctx, M, K, power_codes.data(), power_scales.data(), bf16.data());
    std::vector<float> again(w.size());
    for (size_t i = 0; i < w.size(); ++i) again[i] = bf16_to_f32(bf16[i]);
    std::vector<uint8_t> codes2(w.size()), scales2(4);
    quantise_fp8(ctx, M, K, again.data(), codes2.data(), scales2.data());
    std::vector<uint16_t> bf16_again(w.size());
    dequantise_fp8(ctx, M, K, codes2.data(), scales2.data(), bf16_again.data());
    EXPECT_EQ(bf16_again, bf16);
    // Weights that are not finite are refused.
    again[777] = kNaN;
    EXPECT_THROW(quantise_fp8(ctx, M, K, again.data(), codes2.data(), scales2.data()), UserError);
    again[777] = -kInf;
    EXPECT_THROW(quantise_fp8(ctx, M, K, again.data(), codes2.data(), scales2.data()), UserError);
  });
}

std::vector<float> through_fp8(const std::vector<float>& x, int64_t block) {
  std::vector<float> out(x.size());
  simulate_fp8(x.data(), static_cast<int64_t>(x.size()), block, out.data());
  return out;
}

std::vector<float> through_fp4(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  simulate_fp4(x.data(), static_cast<int64_t>(x.size()), out.data());
  return out;
}

using Floats = std::vector<float>;

TEST(FormatsTest, SimulatedFp8) {
  EXPECT_EQ(through_fp8({1, -0.3125f, 0.0078125f, 2.75f, 3.15625f, 0}, 64),
            Floats({1, -0.3125f, 0.0078125f, 2.75f, 3.25f, 0}));
  EXPECT_EQ(through_fp8({448, 1, 33}, 64), Floats({448, 1, 32}));
  EXPECT_EQ(through_fp8({447}, 64), Floats({448}));
  EXPECT_EQ(through_fp8(Floats(64), 64), Floats(64));
  // Blocks do not see each other: a small value survives where no large one is.
  Floats x(130, 0.0f), expected(130, 0.0f);
  x[0] = expected[0] = 448;
  x[1] = 3.3f, expected[1] = 3.25f;
  x[2] = 0x1p-11f, expected[2] = 0;          // below half of the smallest step
  x[64] = expected[64] = 0x1p-11f;           // alone in its block
  x[129] = 1e-3f, expected[129] = 0x1p-10f;  // 262.1 * 2^-18; codes around 256 step by 32
  EXPECT_EQ(through_fp8(x, 64), expected);
  const Floats nan = through_fp8({kNaN, 2, kInf}, 2);
  EXPECT_TRUE(std::isnan(nan[0]));
  EXPECT_EQ(nan[1], 2.0f);
  EXPECT_TRUE(std::isnan(nan[2]));
}

TEST(FormatsTest, SimulatedFp4) {
  EXPECT_EQ(through_fp4({1, -0.3125f, 0.125f, 0.25f, 0.75f, 1.25f, -1.75f, 0}),
            Floats({1, -0.25f, 0, 0.25f, 0.75f, 1, -2, 0}));
  EXPECT_EQ(through_fp4(Floats(40)), Floats(40));
  Floats x(33, 0.25f), expected(33, 0.0f);
  x[0] = expected[0] = 6;
  expected[32] = 0.25f;  // the second block has its own scale
  EXPECT_EQ(through_fp4(x), expected);
  const Floats nan = through_fp4({kNaN, 2});
  EXPECT_TRUE(std::isnan(nan[0]));
  EXPECT_EQ(nan[1], 2.0f);
}

}  // namespace
}  // namespace fathom
