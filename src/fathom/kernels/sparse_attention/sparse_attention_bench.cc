// Speed of attention over one packed segment (training) and over separate sequences (decode).
// Counter `flops`: 4 per (query, head, key, channel) forward, 10 backward.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "fathom/kernels/sparse_attention/sparse_attention.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

struct Inputs {
  std::vector<float> q, window, entries, sink, o, lse, dout, dq, dwindow, dentries, dsink;
  std::vector<int64_t> window_begin, entry_begin;
  std::vector<int32_t> window_count, segment_of, num_picks, picks;
  const void* page;
  KeyPages pages;
  SparseAttentionBwd params;
  double pairs = 0;

  /// T queries of one segment; with `decode` every query sees a full window and the last entries.
  Inputs(int64_t T, int64_t H, int64_t hd, int64_t W, int64_t topk, bool decode) {
    const auto filled = [](int64_t n, float scale) {
      std::vector<float> v(static_cast<size_t>(n));
      for (size_t i = 0; i < v.size(); ++i) {
        v[i] = scale * (static_cast<float>(i * 2654435761u % 1000) / 500 - 1);
      }
      return v;
    };
    const int64_t num_rows = decode ? T * W : T, num_entries = std::max(T / 4, topk);
    q = filled(T * H * hd, 1), dout = filled(T * H * hd, 1);
    o = dq = q;
    window = dwindow = filled(num_rows * hd, 1), entries = dentries = filled(num_entries * hd, 1);
    sink = dsink = filled(H, 1), lse = filled(T * H, 1);
    page = entries.data(), pages = {&page, num_entries, f32_entries(hd)};
    for (int64_t t = 0; t < T; ++t) {
      const int64_t count = decode ? W : std::min(t + 1, W);
      window_begin.push_back(decode ? t * W : t + 1 - count);
      window_count.push_back(static_cast<int32_t>(count));
      segment_of.push_back(0);
      const int64_t visible = decode ? num_entries : (t + 1) / 4, n = std::min(topk, visible);
      num_picks.push_back(static_cast<int32_t>(n));
      for (int64_t j = 0; j < topk; ++j) {
        picks.push_back(j < n ? static_cast<int32_t>(j * visible / n) : -1);
      }
      pairs += static_cast<double>((count + n) * H);
    }
    entry_begin = {0, num_entries};
    params = {.fwd = {.q = q.data(),
                      .window_kv = window.data(),
                      .window_begin = window_begin.data(),
                      .window_count = window_count.data(),
                      .segment_pages = &pages,
                      .segment_of = segment_of.data(),
                      .picks = picks.data(),
                      .picks_stride = topk,
                      .num_picks = num_picks.data(),
                      .sink = sink.data(),
                      .scale = 0.1f,
                      .T = T,
                      .H = H,
                      .hd = hd,
                      .max_window = *std::max_element(window_count.begin(), window_count.end()),
                      .max_picks = topk,
                      .o = o.data(),
                      .lse = lse.data()},
              .do_ = dout.data(),
              .num_window_rows = num_rows,
              .entry_begin = entry_begin.data(),
              .num_segments = 1,
              .num_entries = num_entries,
              .dq = dq.data(),
              .dwindow_kv = dwindow.data(),
              .dcompressed = dentries.data(),
              .dsink = dsink.data()};
  }
};

/// Arguments: T, H, hd, window, picks, decode, threads. Reports the best call: others may use the
/// machine too.
void attention(benchmark::State& state, bool backward) {
  Inputs in(state.range(0), state.range(1), state.range(2), state.range(3), state.range(4),
            state.range(5) != 0);
  ThreadPool pool(static_cast<int>(state.range(6)));
  const ExecContext ctx{&pool, detect_cpu_isa()};
  sparse_attention_fwd(ctx, in.params.fwd);
  double best = 1e30;
  for (auto _ : state) {
    const auto start = Clock::now();
    if (backward) {
      sparse_attention_bwd(ctx, in.params);
    } else {
      sparse_attention_fwd(ctx, in.params.fwd);
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  state.counters["best_us"] = best * 1e6;
  const double per_pair = (backward ? 10 : 4) * static_cast<double>(state.range(2));
  state.counters["flops"] = benchmark::Counter(in.pairs * per_pair / best);
}

void shapes(benchmark::internal::Benchmark* b) {
  for (const int threads : {1, 2}) {
    b->Args({2048, 8, 64, 16, 8, 0, threads});
    b->Args({2048, 8, 64, 128, 16, 0, threads});
    b->Args({256, 64, 512, 128, 512, 0, threads});
  }
}
void decode_shapes(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {1, 8, 64}) b->Args({T, 8, 64, 16, 8, 1, 1});
}

BENCHMARK_CAPTURE(attention, forward, false)->Apply(shapes)->Apply(decode_shapes)->UseRealTime();
BENCHMARK_CAPTURE(attention, backward, true)->Apply(shapes)->UseRealTime();

}  // namespace
}  // namespace fathom
