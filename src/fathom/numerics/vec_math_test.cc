#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "fathom/numerics/scalar_math.h"
#include "fathom/numerics/vec_arrays.h"
#include "fathom/numerics/vec_arrays_cpu.h"

namespace fathom {
namespace {

using Function = void (*)(CpuIsa, int64_t, const float*, float*);

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kTiny = std::numeric_limits<float>::min();

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

std::vector<CpuIsa> isas() {
  std::vector<CpuIsa> result = {CpuIsa::kAvx2};
  if (detect_cpu_isa() == CpuIsa::kAvx512) result.push_back(CpuIsa::kAvx512);
  return result;
}

std::vector<float> apply(Function f, CpuIsa isa, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  f(isa, static_cast<int64_t>(x.size()), x.data(), y.data());
  return y;
}

float apply(Function f, float x) {
  float y = 0;
  f(CpuIsa::kAvx2, 1, &x, &y);
  return y;
}

/// Distance of y from the exact value in units of the last place of the exact value.
double error_in_ulp(float y, double exact) {
  if (y == exact) return 0;  // zeros and infinities
  int exponent;
  std::frexp(exact, &exponent);
  const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
  return std::abs(static_cast<double>(y) - exact) / ulp;
}

/// Every `step`-th float between two bit patterns of one sign.
std::vector<float> sweep(float from, float to, uint32_t step) {
  std::vector<float> x;
  const uint32_t a = std::min(bits_of(from), bits_of(to)), b = std::max(bits_of(from), bits_of(to));
  for (uint64_t i = a; i <= b; i += step) x.push_back(float_of(static_cast<uint32_t>(i)));
  return x;
}

/// Errors over x stay below `bound` ulp, and every build gives the same bits.
template <typename Exact>
void expect_ulp(Function f, const std::vector<float>& x, Exact exact, double bound) {
  const std::vector<float> y = apply(f, CpuIsa::kAvx2, x);
  for (const CpuIsa isa : isas()) {
    const std::vector<float> other = apply(f, isa, x);
    EXPECT_EQ(std::memcmp(y.data(), other.data(), y.size() * sizeof(float)), 0);
  }
  double worst = 0;
  float at = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = error_in_ulp(y[i], exact(static_cast<double>(x[i])));
    if (!(e <= worst)) worst = e, at = x[i];
  }
  EXPECT_FALSE(std::isnan(worst)) << "at " << at;
  EXPECT_LT(worst, bound) << "at " << at;
}

double exact_exp(double x) { return std::exp(x); }
double exact_log(double x) { return std::log(x); }

TEST(VecMathTest, Exp) {
  expect_ulp(exp_array, sweep(0.0f, 88.72283f, 2003), exact_exp, 1.5);
  expect_ulp(exp_array, sweep(-0.0f, -87.33f, 2003), exact_exp, 1.5);
  // Subnormal results are rounded a second time.
  expect_ulp(exp_array, sweep(-87.33f, -104.0f, 101), exact_exp, 1.5);
  EXPECT_EQ(apply(exp_array, 0.0f), 1.0f);
  EXPECT_EQ(apply(exp_array, -0.0f), 1.0f);
  EXPECT_EQ(apply(exp_array, kInf), kInf);
  EXPECT_EQ(apply(exp_array, 88.73f), kInf);
  EXPECT_EQ(apply(exp_array, 3.4e38f), kInf);
  for (const float x : {-104.0f, -110.0f, -3.4e38f, -kInf}) {
    EXPECT_EQ(bits_of(apply(exp_array, x)), 0u) << x;
  }
  EXPECT_GT(apply(exp_array, -103.0f), 0.0f);
  EXPECT_TRUE(std::isnan(apply(exp_array, kNaN)));
  EXPECT_TRUE(std::isnan(apply(exp_array, -kNaN)));
}

TEST(VecMathTest, ExpNeverDecreases) {
  const std::vector<float> x = sweep(-0.0f, -104.0f, 997);
  const std::vector<float> y = apply(exp_array, CpuIsa::kAvx2, x);
  for (size_t i = 1; i < x.size(); ++i) ASSERT_LE(y[i], y[i - 1]) << x[i];
}

TEST(VecMathTest, Log) {
  expect_ulp(log_array, sweep(kTiny, 3.4e38f, 2003), exact_log, 1.5);
  expect_ulp(log_array, sweep(0.5f, 2.0f, 7), exact_log, 1.5);
  expect_ulp(log_array, sweep(1e-45f, kTiny, 997), exact_log, 1.5);  // subnormals
  EXPECT_EQ(bits_of(apply(log_array, 1.0f)), 0u);
  EXPECT_EQ(apply(log_array, 0.0f), -kInf);
  EXPECT_EQ(apply(log_array, -0.0f), -kInf);
  EXPECT_EQ(apply(log_array, kInf), kInf);
  for (const float x : {-1.0f, -1e-45f, -kInf, kNaN}) {
    EXPECT_TRUE(std::isnan(apply(log_array, x))) << x;
  }
}

TEST(VecMathTest, Log1p) {
  const auto exact = [](double x) { return std::log1p(x); };
  expect_ulp(log1p_array, sweep(0.0f, 1.0f, 1009), exact, 1.5);
  expect_ulp(log1p_array, sweep(1.0f, 1e30f, 2003), exact, 1.5);
  EXPECT_EQ(bits_of(apply(log1p_array, 0.0f)), 0u);
  EXPECT_TRUE(std::isnan(apply(log1p_array, kNaN)));
}

TEST(VecMathTest, Sigmoid) {
  const auto exact = [](double x) { return 1 / (1 + std::exp(-x)); };
  // Below -87.33 the exponential of -x leaves its range.
  expect_ulp(sigmoid_array, sweep(0.0f, 200.0f, 2003), exact, 2);
  expect_ulp(sigmoid_array, sweep(-0.0f, -87.0f, 2003), exact, 2.5);
  EXPECT_EQ(apply(sigmoid_array, 0.0f), 0.5f);
  EXPECT_EQ(apply(sigmoid_array, kInf), 1.0f);
  EXPECT_EQ(bits_of(apply(sigmoid_array, -kInf)), 0u);
  EXPECT_EQ(bits_of(apply(sigmoid_array, -89.0f)), 0u);
  EXPECT_TRUE(std::isnan(apply(sigmoid_array, kNaN)));
}

TEST(VecMathTest, Softplus) {
  const auto exact = [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); };
  expect_ulp(softplus_array, sweep(0.0f, 1e6f, 2003), exact, 2);
  expect_ulp(softplus_array, sweep(-0.0f, -87.0f, 2003), exact, 2);
  EXPECT_EQ(apply(softplus_array, kInf), kInf);
  EXPECT_EQ(bits_of(apply(softplus_array, -kInf)), 0u);
  EXPECT_TRUE(std::isnan(apply(softplus_array, kNaN)));
}

TEST(VecMathTest, ShortArraysAndScalarsHaveTheBitsOfALane) {
  const std::vector<float> x = sweep(0.01f, 80.0f, 1 << 18);
  for (const Function f : {exp_array, log_array, log1p_array, sigmoid_array, softplus_array}) {
    const std::vector<float> all = apply(f, CpuIsa::kAvx2, x);
    for (const CpuIsa isa : isas()) {
      for (size_t i = 0; i < x.size(); ++i) {
        float one = 0;
        f(isa, 1, &x[i], &one);
        ASSERT_EQ(bits_of(one), bits_of(all[i])) << x[i];
      }
      for (int64_t n = 0; n <= 20; ++n) {
        std::vector<float> y(21, 7.0f);
        f(isa, n, x.data(), y.data());
        for (int64_t i = 0; i <= 20; ++i) {
          const size_t j = static_cast<size_t>(i);
          ASSERT_EQ(bits_of(y[j]), bits_of(i < n ? all[j] : 7.0f));  // nothing behind n is written
        }
      }
    }
  }
  for (const float v : x) {
    ASSERT_EQ(bits_of(scalar_exp(v)), bits_of(apply(exp_array, v)));
    ASSERT_EQ(bits_of(scalar_log(v)), bits_of(apply(log_array, v)));
  }
}

TEST(VecMathTest, SineAndCosine) {
  std::vector<double> x;
  for (int i = 0; i <= 400000; ++i) x.push_back(i * (2097152.0 / 400000) + i * 1e-7);
  for (int i = 0; i <= 100000; ++i) x.push_back(i * 1e-4);
  // The nearest doubles and floats to multiples of pi/2: the hardest arguments for the reduction.
  for (int i = 1; i < 1335000; i += 13) {
    x.push_back(i * 1.57079632679489661923);
    x.push_back(static_cast<float>(i * 1.57079632679489661923));
  }
  const size_t positive = x.size();
  for (size_t i = 0; i < positive; ++i) x.push_back(-x[i]);
  std::vector<double> s(x.size()), c(x.size());
  sin_cos_array(CpuIsa::kAvx2, static_cast<int64_t>(x.size()), x.data(), s.data(), c.data());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const long double exact_s = std::sin(static_cast<long double>(x[i]));
    const long double exact_c = std::cos(static_cast<long double>(x[i]));
    worst = std::max(worst, static_cast<double>(std::abs(s[i] - exact_s)));
    worst = std::max(worst, static_cast<double>(std::abs(c[i] - exact_c)));
  }
  EXPECT_LT(worst, 1e-15);
  for (const CpuIsa isa : isas()) {
    std::vector<double> s2(x.size()), c2(x.size());
    sin_cos_array(isa, static_cast<int64_t>(x.size()), x.data(), s2.data(), c2.data());
    EXPECT_EQ(std::memcmp(s.data(), s2.data(), s.size() * sizeof(double)), 0);
    EXPECT_EQ(std::memcmp(c.data(), c2.data(), c.size() * sizeof(double)), 0);
  }
  double one_s = 0, one_c = 0;
  scalar_sin_cos(x[77], &one_s, &one_c);
  EXPECT_EQ(one_s, s[77]);
  EXPECT_EQ(one_c, c[77]);
}

TEST(VecMathTest, Transpose16) {
  std::vector<float> src(16 * 19), expected(16 * 17, -1.0f);
  for (size_t i = 0; i < src.size(); ++i) src[i] = static_cast<float>(i);
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 16; ++j) expected[i * 17 + j] = src[j * 19 + i];
  }
  for (const CpuIsa isa : isas()) {
    std::vector<float> dst(expected.size(), -1.0f);
    (isa == CpuIsa::kAvx512 ? avx512::transpose16_block : avx2::transpose16_block)(src.data(), 19,
                                                                                   dst.data(), 17);
    EXPECT_EQ(dst, expected);
  }
}

}  // namespace
}  // namespace fathom
