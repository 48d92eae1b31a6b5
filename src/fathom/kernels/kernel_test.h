// What the kernel tests share: seeded inputs, every way to run a kernel on this machine,
// comparisons. Each test is built a second time for a CUDA device (gpu_test_main.cc), where every
// context of for_each_context is on the device and the memory of the test is visible to it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"

#ifndef FATHOM_TEST_CUDA
#define FATHOM_TEST_CUDA 0
#endif

namespace fathom {

/// Rows of a panel of a weight (linear/panel.h): row-major on a device.
inline constexpr int64_t kWeightPanelRows = FATHOM_TEST_CUDA ? 1 : 16;

#if FATHOM_TEST_CUDA
Device* test_device();  // opened by main()
#else
inline Device* test_device() { return nullptr; }
#endif

/// The plainest context that tests compare others with.
inline ExecContext base_context(ThreadPool* pool) {
  return {pool, CpuIsa::kAvx2, test_device()};
}

inline std::vector<float> random_floats(int64_t n, float low, float high, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) {
    v = low + (high - low) * (static_cast<float>(generator() >> 8) * 0x1p-24f);
  }
  return values;
}

inline std::vector<double> to_double(const std::vector<float>& values) {
  return std::vector<double>(values.begin(), values.end());
}

/// Calls body(ctx, name) for 1 and 3 threads on every instruction set that this CPU has, or once
/// for the device.
template <typename Body>
void for_each_context(Body&& body) {
  if (test_device() != nullptr) {
    ThreadPool pool(1);
    body(base_context(&pool), std::string("cuda"));
    return;
  }
  std::vector<CpuIsa> isas = {CpuIsa::kAvx2};
  if (detect_cpu_isa() == CpuIsa::kAvx512) isas.push_back(CpuIsa::kAvx512);
  for (const CpuIsa isa : isas) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      const ExecContext ctx{&pool, isa};
      body(ctx, std::string(isa == CpuIsa::kAvx512 ? "avx512" : "avx2") + " with " +
                    std::to_string(threads) + " threads");
    }
  }
}

template <typename T>
void expect_same_bits(const std::vector<T>& actual, const std::vector<T>& expected,
                      const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof(T)), 0)
        << what << ": element " << i << " is " << actual[i] << ", expected " << expected[i];
  }
}

/// Every element within atol + rtol * |expected|; the worst one is printed.
template <typename Actual>
void expect_close(const std::vector<Actual>& actual, const std::vector<double>& expected,
                  double atol, double rtol, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double worst = -1;
  size_t at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]);
    ASSERT_TRUE(std::isfinite(a)) << what << ": element " << i << " is " << a;
    const double excess = std::abs(a - expected[i]) - (atol + rtol * std::abs(expected[i]));
    if (i == 0 || excess > worst) worst = excess, at = i;
  }
  if (actual.empty()) return;
  EXPECT_LE(worst, 0) << what << ": element " << at << " is " << actual[at] << ", expected "
                      << expected[at] << " (atol " << atol << ", rtol " << rtol << ")";
}

/// d(loss)/d(values[i]) by central differences for every i; loss() reads `values`.
template <typename Loss>
std::vector<double> central_differences(std::vector<double>& values, double step, Loss&& loss) {
  std::vector<double> gradient(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const double saved = values[i];
    values[i] = saved + step;
    const double up = loss();
    values[i] = saved - step;
    const double down = loss();
    values[i] = saved;
    gradient[i] = (up - down) / (2 * step);
  }
  return gradient;
}

}  // namespace fathom
