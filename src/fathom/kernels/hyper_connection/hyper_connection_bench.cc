// Time per call of the four passes around a sublayer. Counter `tokens`: tokens per second.
// Shapes: the tiny model (D = 128) in training and decoding, the released one (D = 4096) in
// decoding.
#include <benchmark/benchmark.h>

#include <utility>
#include <vector>

#include "fathom/kernels/hyper_connection/hyper_connection.h"

namespace fathom {
namespace {

constexpr int64_t kM = 4, kN = 24, kPaddedN = 32;

struct Layer {
  HcShape s;
  std::vector<float> fn, base, scale, x, y, post, comb, dout, df, dpost, dcomb, dx, dfn, dbase,
      dscale;

  Layer(int64_t T, int64_t D)
      : s{.T = T, .M = kM, .D = D, .sinkhorn_iters = 20, .norm_eps = 1e-6f, .hc_eps = 1e-6f} {
    const auto fill = [](std::vector<float>& v, int64_t n, float width) {
      v.resize(static_cast<size_t>(n));
      for (size_t i = 0; i < v.size(); ++i) {
        v[i] = width * (static_cast<float>((i * 7919) % 1009) / 504.5f - 1);
      }
    };
    fill(fn, kPaddedN * kM * D, 0.05f);
    fill(base, kN, 0.5f);
    fill(scale, 3, 1);
    fill(x, T * kM * D, 1);
    fill(dout, T * kM * D, 1);
    fill(y, T * D, 1);
    fill(post, T * kM, 1);
    fill(comb, T * kM * kM, 1);
    fill(dpost, T * kM, 1);
    fill(dcomb, T * kM * kM, 1);
    df = y;
    dx = x;
    dfn = fn;
    dbase = base;
    dscale = scale;
  }
  HcWeights weights() const { return {fn.data(), base.data(), scale.data()}; }
};

template <typename Pass>
void run(benchmark::State& state, Pass&& pass) {
  Layer layer(state.range(0), state.range(1));
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  for (auto _ : state) {
    pass(ctx, layer);
    benchmark::ClobberMemory();
  }
  state.counters["tokens"] = benchmark::Counter(static_cast<double>(layer.s.T),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

void BM_PreFwd(benchmark::State& state) {
  run(state, [](const ExecContext& ctx, Layer& l) {
    hc_pre_fwd(ctx, l.s, l.weights(), l.x.data(), l.y.data(), l.post.data(), l.comb.data());
  });
}
void BM_PostFwd(benchmark::State& state) {
  run(state, [](const ExecContext& ctx, Layer& l) {
    hc_post_fwd(ctx, l.s, l.x.data(), l.y.data(), l.post.data(), l.comb.data(), l.dx.data());
  });
}
void BM_PostBwd(benchmark::State& state) {
  run(state, [](const ExecContext& ctx, Layer& l) {
    hc_post_bwd(ctx, l.s, l.x.data(), l.y.data(), l.post.data(), l.comb.data(), l.dout.data(),
                l.df.data(), l.dpost.data(), l.dcomb.data(), l.dx.data());
  });
}
void BM_PreBwd(benchmark::State& state) {
  run(state, [](const ExecContext& ctx, Layer& l) {
    hc_pre_bwd(ctx, l.s, l.weights(), l.x.data(), l.y.data(), l.dpost.data(), l.dcomb.data(),
               l.dx.data(), {l.dfn.data(), l.dbase.data(), l.dscale.data()});
  });
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "D"});
  for (const auto& [T, D] :
       {std::pair<int64_t, int64_t>{2048, 128}, {16, 128}, {1, 128}, {16, 4096}}) {
    b->Args({T, D});
  }
}
BENCHMARK(BM_PreFwd)->Apply(shapes);
BENCHMARK(BM_PostFwd)->Apply(shapes);
BENCHMARK(BM_PostBwd)->Apply(shapes);
BENCHMARK(BM_PreBwd)->Apply(shapes);

}  // namespace
}  // namespace fathom
