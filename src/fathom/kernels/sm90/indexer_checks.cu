// Indexer: scores against fp64, picks against a sort, bits alone and in a batch, and speed.
#include <numeric>
#include <string>

#include "fathom/kernels/indexer/indexer_sm90.h"
#include "fathom/kernels/sm90/checks.h"
#include "fathom/kernels/sm90/harness.h"

namespace fathom::sm90 {
namespace {

using bf16 = __nv_bfloat16;

__global__ void scores_ref(IndexerScoresSm90 p, double* out) {
  const int w = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
  if (w >= p.num_keys) return;
  double sum = 0;
  for (int h = 0; h < 64; ++h) {
    double dot = 0;
    for (int d = 0; d < 128; ++d)
      dot += double(__bfloat162float(p.q[(int64_t{t} * 64 + h) * 128 + d])) *
             double(__bfloat162float(p.keys[int64_t{w} * 128 + d]));
    sum += double(p.weights[t * 64 + h]) * fmax(dot, 0.0);
  }
  out[int64_t{t} * p.num_keys + w] = sum;
}

void check_scores(int T, int n) {
  Buffer<bf16> q(size_t(T) * 64 * 128), keys(size_t(n) * 128);
  Buffer<float> weights(size_t(T) * 64), scores(size_t(T) * n), one(n);
  Buffer<double> ref(size_t(T) * n);
  fill(q, 31), fill(keys, 32), fill(weights, 33, 0.011f);
  IndexerScoresSm90 p{q.get(), weights.get(), keys.get(), nullptr, T, n, scores.get(), n};
  scores_ref<<<dim3((n + 127) / 128, T), 128>>>(p, ref.get());
  FATHOM_CUDA(indexer_scores_sm90(p, nullptr));
  FATHOM_CUDA(cudaDeviceSynchronize());
  const std::string name = "scores " + std::to_string(T) + " x " + std::to_string(n);
  const double err = relative_error(scores.get(), ref.get(), ref.size());
  expect(err < 2e-6, (name + " against fp64: " + std::to_string(err)).c_str());
  for (int t : {0, T / 2, T - 1}) {
    IndexerScoresSm90 alone = p;
    alone.q += int64_t{t} * 64 * 128, alone.weights += t * 64, alone.T = 1,
                                                               alone.scores = one.get();
    one.poison();
    FATHOM_CUDA(indexer_scores_sm90(alone, nullptr));
    FATHOM_CUDA(cudaDeviceSynchronize());
    expect(different_bits(scores.get() + size_t(t) * n, one.get(), n) == 0,
           (name + " query alone").c_str());
  }
  // Only what is visible is written.
  std::vector<int32_t> visible(T);
  for (int t = 0; t < T; ++t) visible[t] = int32_t(mix(t + 5) % (n + 1));
  Buffer<int32_t> visible_dev(visible);
  Buffer<float> partial(size_t(T) * n);
  p.num_visible = visible_dev.get(), p.scores = partial.get();
  FATHOM_CUDA(indexer_scores_sm90(p, nullptr));
  FATHOM_CUDA(cudaDeviceSynchronize());
  const auto all = scores.host(), part = partial.host();
  bool ok = true;
  for (int t = 0; t < T; ++t)
    for (int w = 0; w < n; ++w) {
      const float got = part[size_t(t) * n + w];
      ok &= w < visible[t] ? got == all[size_t(t) * n + w] : std::isnan(got);
    }
  expect(ok, (name + " writes what is visible and nothing else").c_str());
  std::printf("indexer %-28s error %.1e\n", name.c_str(), err);
}

// step > 0: scores rounded to multiples of it, so that ties decide; many are -0 and +0.
void check_topk(int T, int n, int k, float step) {
  std::vector<float> s(size_t(T) * n);
  std::vector<int32_t> visible(T);
  for (int t = 0; t < T; ++t) visible[t] = t == 0 ? n : int32_t(mix(t + 3) % (n + 1));
  for (size_t i = 0; i < s.size(); ++i) {
    s[i] = noise(41, i);
    if (step > 0) s[i] = std::trunc(s[i] / step) * step;
  }
  const int64_t ld = n;
  Buffer<float> dev(s);
  Buffer<int32_t> visible_dev(visible), picks(size_t(T) * k), num(T), nan(std::vector<int32_t>{0});
  TopkSm90 p{dev.get(), ld, visible_dev.get(), T, n, k, picks.get(), num.get(), nan.get()};
  FATHOM_CUDA(topk_sm90(p, nullptr));
  FATHOM_CUDA(cudaDeviceSynchronize());
  const auto got = picks.host(), got_num = num.host();
  bool ok = nan.host()[0] == 0;
  for (int t = 0; t < T; ++t) {
    std::vector<int32_t> order(visible[t]);
    std::iota(order.begin(), order.end(), 0);
    const float* row = &s[size_t(t) * n];
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    order.resize(std::min(k, visible[t]));
    std::sort(order.begin(), order.end());
    ok &= got_num[t] == int32_t(order.size());
    order.resize(k, -1);
    ok &= std::equal(order.begin(), order.end(), &got[size_t(t) * k]);
  }
  expect(ok,
         ("top " + std::to_string(k) + " of " + std::to_string(n) + " step " + std::to_string(step))
             .c_str());
}

}  // namespace

void check_indexer() {
  check_scores(5, 300);
  check_scores(64, 2500);
  check_scores(130, 4096);
  for (float step : {0.0f, 0.01f, 1.0f, 100.0f}) {
    check_topk(20, 16384, 512, step);
    check_topk(20, 1000, 512, step);
    check_topk(5, 40000, 1024, step);
    check_topk(40, 516, 512, step);
  }
  Buffer<float> row(std::vector<float>{1, 2, NAN, 4});
  Buffer<int32_t> picks(2), num(1), nan(std::vector<int32_t>{0});
  FATHOM_CUDA(
      topk_sm90({row.get(), 4, nullptr, 1, 4, 2, picks.get(), num.get(), nan.get()}, nullptr));
  expect(nan.host()[0] == 1, "a NaN score is told");
  std::printf("indexer picks checked\n");
}

void time_indexer() {
  const int T = 4096, n = 16384, k = 512;
  Buffer<bf16> q(size_t(T) * 64 * 128), keys(size_t(n) * 128);
  Buffer<float> weights(size_t(T) * 64), scores(size_t(T) * n);
  Buffer<int32_t> picks(size_t(T) * k), num(T), nan(std::vector<int32_t>{0});
  fill(q, 31), fill(keys, 32), fill(weights, 33, 0.011f), fill(scores, 34);
  const TopkSm90 top{scores.get(), n, nullptr, T, n, k, picks.get(), num.get(), nan.get()};
  double ms = time_ms([&](cudaStream_t s) { FATHOM_CUDA(topk_sm90(top, s)); });
  std::printf("top-k   %d x %d of %d, normal scores      %8.1f us, floor %.1f us\n", T, k, n,
              ms * 1e3, 4.0 * T * n / 3.0e12 * 1e6);
  const IndexerScoresSm90 p{q.get(), weights.get(), keys.get(), nullptr, T, n, scores.get(), n};
  ms = time_ms([&](cudaStream_t s) { FATHOM_CUDA(indexer_scores_sm90(p, s)); });
  const double flops = 2.0 * T * n * 64 * 128;
  std::printf("scores  %d x %d                       %8.1f us %.1f TFLOP/s, floor %.1f us\n", T, n,
              ms * 1e3, flops / ms * 1e-9, flops / 989e12 * 1e6);
  ms = time_ms([&](cudaStream_t s) { FATHOM_CUDA(topk_sm90(top, s)); });
  std::printf("top-k   %d x %d of %d, indexer scores     %8.1f us\n", T, k, n, ms * 1e3);
  for (int batch : {1, 64}) {
    IndexerScoresSm90 d = p;
    d.T = batch;
    ms = time_ms([&](cudaStream_t s) { FATHOM_CUDA(indexer_scores_sm90(d, s)); });
    TopkSm90 dt = top;
    dt.T = batch;
    const double ms2 = time_ms([&](cudaStream_t s) { FATHOM_CUDA(topk_sm90(dt, s)); });
    std::printf("decode  %d x %d: scores %.1f us, top-k %.1f us\n", batch, n, ms * 1e3, ms2 * 1e3);
  }
}

}  // namespace fathom::sm90
