// log_sum_exp of one row (a decoding step's share) and the training passes at the tiny model's
// width.
#include <benchmark/benchmark.h>

#include <vector>

#include "fathom/kernels/log_prob/log_prob.h"

namespace fathom {
namespace {

std::vector<float> numbers(int64_t n, float width) {
  std::vector<float> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) {
    v[i] = width * (static_cast<float>((i * 7919) % 1009) / 504.5f - 1);
  }
  return v;
}

void BM_LogSumExp(benchmark::State& state) {
  const auto z = numbers(state.range(0), 10);
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  for (auto _ : state) benchmark::DoNotOptimize(log_sum_exp(ctx, z.data(), state.range(0)));
}
BENCHMARK(BM_LogSumExp)->ArgName("V")->Arg(64)->Arg(512)->Arg(129280);

/// rows, D, V; flops counts the matrix products only (1 forward, 3 backward).
void run(benchmark::State& state, bool backward) {
  const int64_t R = state.range(0), D = state.range(1), V = state.range(2);
  const auto hidden = numbers(R * D, 1), w = numbers((V + 15) / 16 * 16 * D, 0.1f),
             dlogp = numbers(R, 1);
  std::vector<int32_t> targets;
  for (int64_t r = 0; r < R; ++r) targets.push_back(static_cast<int32_t>(r * 31 % V));
  std::vector<float> logp(targets.size()), lse(targets.size()), dhidden(hidden.size()),
      dw(w.size());
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  LogProbBwd b{};
  b.fwd = {.hidden = hidden.data(),
           .w_panels = w.data(),
           .targets = targets.data(),
           .R = R,
           .D = D,
           .V = V,
           .temperature = 1,
           .log_probs = logp.data(),
           .lse = lse.data(),
           .entropy = nullptr};
  b.dlog_probs = dlogp.data();
  b.dhidden = dhidden.data();
  b.dw_panels = dw.data();
  log_prob_fwd(ctx, b.fwd);
  for (auto _ : state) {
    if (backward) {
      log_prob_bwd(ctx, b);
    } else {
      log_prob_fwd(ctx, b.fwd);
    }
    benchmark::ClobberMemory();
  }
  state.counters["flops"] =
      benchmark::Counter((backward ? 3.0 : 1.0) * 2 * static_cast<double>(R * D * V),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void BM_LogProbFwd(benchmark::State& state) { run(state, false); }
void BM_LogProbBwd(benchmark::State& state) { run(state, true); }
void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"R", "D", "V"})
      ->Args({2048, 128, 64})
      ->Args({2048, 128, 512})
      ->Args({64, 256, 129280});
}
BENCHMARK(BM_LogProbFwd)->Apply(shapes);
BENCHMARK(BM_LogProbBwd)->Apply(shapes);

}  // namespace
}  // namespace fathom
