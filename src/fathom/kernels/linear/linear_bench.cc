// Speed of the three products next to the fma peak of one core, measured in the same run.
// Counter `flops`: 2·T·N·K per call; `of_peak`: its share of the peak (one thread).
#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <chrono>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/linear/linear.h"

namespace fathom {
namespace {

// Twelve independent chains: enough to fill two fma units of latency 4 or 5.
constexpr int kChains = 12;
constexpr int kSteps = 20000;

__attribute__((target("avx512f"))) double spin_avx512() {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
  }
  for (int i = 0; i < kChains; ++i) benchmark::DoNotOptimize(acc[i]);
  return 2.0 * 16 * kChains * kSteps;
}

double spin_avx2() {
  __m256 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
  }
  for (int i = 0; i < kChains; ++i) benchmark::DoNotOptimize(acc[i]);
  return 2.0 * 8 * kChains * kSteps;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Best flops per second of one core over many short tries: others may use the machine too.
double fma_peak(CpuIsa isa) {
  double best = 0;
  for (int i = 0; i < 400; ++i) {
    const auto start = Clock::now();
    const double flops = isa == CpuIsa::kAvx512 ? spin_avx512() : spin_avx2();
    best = std::max(best, flops / seconds_since(start));
  }
  return best;
}

enum class Product { kForward, kBwdInput, kBwdWeight };

/// Arguments: T, N, K, threads. Reports the best call, for the same reason.
void linear(benchmark::State& state, Product product, CpuIsa isa) {
  if (isa == CpuIsa::kAvx512 && detect_cpu_isa() != CpuIsa::kAvx512) {
    state.SkipWithError("this CPU has no AVX-512");
    return;
  }
  static const double peaks[2] = {fma_peak(CpuIsa::kAvx2), detect_cpu_isa() == CpuIsa::kAvx512
                                                               ? fma_peak(CpuIsa::kAvx512)
                                                               : 0.0};
  const int64_t T = state.range(0), N = state.range(1), K = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  ThreadPool pool(threads);
  const ExecContext ctx{&pool, isa};
  const auto filled = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n), 0.25f); };
  std::vector<float> x = filled(T * K), dy = filled(T * N), w = filled(PanelLayout{N, K, 1}.size());
  double best = 1e30;
  for (auto _ : state) {
    const auto start = Clock::now();
    if (product == Product::kForward) {
      linear_fwd(ctx, {x.data(), K, w.data(), dy.data(), N, T, N, K});
    } else if (product == Product::kBwdInput) {
      linear_bwd_input(ctx, {dy.data(), N, w.data(), x.data(), K, T, N, K});
    } else {
      linear_bwd_weight(ctx, {x.data(), K, dy.data(), N, w.data(), T, N, K});
    }
    best = std::min(best, seconds_since(start));
  }
  const double flops = 2.0 * static_cast<double>(T * N * K) / best;
  state.counters["best_us"] = best * 1e6;
  state.counters["flops"] = benchmark::Counter(flops);
  state.counters["of_peak"] = flops / (peaks[isa == CpuIsa::kAvx512] * threads);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "N", "K", "threads"});
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
           {64, 128}, {512, 64}, {128, 128}, {64, 64}, {128, 64}, {512, 512}}) {
    b->Args({2048, n, k, 1});
  }
  b->Args({2048, 512, 512, 2});
  for (const int64_t t : {1, 4, 16}) b->Args({t, 512, 64, 1});
}

BENCHMARK_CAPTURE(linear, fwd_avx512, Product::kForward, CpuIsa::kAvx512)->Apply(shapes);
BENCHMARK_CAPTURE(linear, fwd_avx2, Product::kForward, CpuIsa::kAvx2)->Apply(shapes);
BENCHMARK_CAPTURE(linear, bwd_input_avx512, Product::kBwdInput, CpuIsa::kAvx512)->Apply(shapes);
BENCHMARK_CAPTURE(linear, bwd_input_avx2, Product::kBwdInput, CpuIsa::kAvx2)->Apply(shapes);
BENCHMARK_CAPTURE(linear, bwd_weight_avx512, Product::kBwdWeight, CpuIsa::kAvx512)->Apply(shapes);
BENCHMARK_CAPTURE(linear, bwd_weight_avx2, Product::kBwdWeight, CpuIsa::kAvx2)->Apply(shapes);

}  // namespace
}  // namespace fathom
