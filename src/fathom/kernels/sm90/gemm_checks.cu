// Products with a weight: against fp64, bits across variants and batches, and speed.
#include <cuda_fp8.h>

#include <array>
#include <string>

#include "fathom/kernels/linear/gemm_sm90.h"
#include "fathom/kernels/sm90/checks.h"
#include "fathom/kernels/sm90/harness.h"

namespace fathom::sm90 {
namespace {

using bf16 = __nv_bfloat16;
using e4m3 = __nv_fp8_e4m3;

__device__ double value(const bf16* p, int64_t i) { return double(__bfloat162float(p[i])); }
__device__ double value(const e4m3* p, int64_t i) { return double(float(p[i])); }

// The equation, one thread an element, fp64 (fp32 with kPlain: the plain version).
template <class T, class Acc>
__global__ void gemm_plain(const T* a, const T* w, const float* sa, int64_t sa_ld, const float* sw,
                           const int32_t* begin, int groups, Acc* d, int M, int N, int K) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, m = blockIdx.y;
  if (n >= N || m >= M) return;
  int g = 0;
  if (begin != nullptr)
    while (g + 1 < groups && begin[g + 1] <= m) ++g;
  const int64_t wrow = int64_t{g} * N + n;
  Acc sum = 0;
  for (int k0 = 0; k0 < K; k0 += 128) {
    Acc part = 0;
    for (int k = k0; k < min(K, k0 + 128); ++k)
      part += Acc(value(a, int64_t{m} * K + k)) * Acc(value(w, wrow * K + k));
    const Acc scale = sa == nullptr ? Acc(1)
                                    : Acc(sa[(k0 / 128) * sa_ld + m]) *
                                          Acc(sw[wrow / 128 * (K / 128) + k0 / 128]);
    sum += part * scale;
  }
  d[int64_t{m} * N + n] = sum;
}

__global__ void fill_pow2(float* out, size_t n, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x)
    out[i] = exp2f(float(int(mix(seed + i * 77) % 5) - 6));
}

// One set of inputs of a product.
template <class T>
struct Case {
  static constexpr bool kFp8 = sizeof(T) == 1;
  int M, N, K, groups;
  Buffer<T> a, w;
  Buffer<float> sa, sw;
  std::vector<int32_t> begin;
  Buffer<int32_t> begin_dev;
  static std::vector<int32_t> ragged(int m, int g, bool even) {
    std::vector<int32_t> b(g + 1, 0);
    if (even) {
      for (int i = 0; i <= g; ++i) b[i] = int64_t{m} * i / g;
      return b;
    }
    for (int i = 1; i < g; ++i) b[i] = int32_t(mix(i * 31 + g) % (m + 1));
    b[g] = m;
    std::sort(b.begin(), b.end());
    return b;
  }
  Case(int m, int n, int k, int g = 1, bool even = false)
      : M(m),
        N(n),
        K(k),
        groups(g),
        a(size_t(m) * k),
        w(size_t(g) * n * k),
        sa(kFp8 ? size_t(k) / 128 * m : 1),
        sw(kFp8 ? size_t(g) * (n / 128) * (k / 128) : 1),
        begin(ragged(m, g, even)),
        begin_dev(begin) {
    fill(a, 11 + m);
    fill(w, 12 + n);
    fill_pow2<<<64, 256>>>(sa.get(), sa.size(), 5);
    fill_pow2<<<64, 256>>>(sw.get(), sw.size(), 6);
    FATHOM_CUDA(cudaDeviceSynchronize());
  }
  GemmSm90 params(void* d, bool out_fp32) const {
    GemmSm90 p{};
    p.a = a.get(), p.w = w.get(), p.d = d;
    p.M = M, p.N = N, p.K = K, p.lda = K, p.ldw = K, p.ldd = N;
    p.out_fp32 = out_fp32;
    if (kFp8) p.a_scale = sa.get(), p.a_scale_ld = M, p.w_scale = sw.get();
    if (groups > 1) p.group_begin = begin_dev.get(), p.num_groups = groups;
    return p;
  }
  void reference(double* d) const {
    gemm_plain<T, double><<<dim3((N + 127) / 128, M), 128>>>(
        a.get(), w.get(), kFp8 ? sa.get() : nullptr, M, sw.get(),
        groups > 1 ? begin_dev.get() : nullptr, groups, d, M, N, K);
    FATHOM_CUDA(cudaDeviceSynchronize());
  }
};

// Tensor cores cut off, rather than round, the bits that fall below an accumulator, so the error
// grows with the number of steps.
template <class T>
void check(int m, int n, int k, int g = 1) {
  const Case<T> c(m, n, k, g);
  Buffer<double> ref(size_t(m) * n);
  c.reference(ref.get());
  Buffer<float> first(size_t(m) * n), out(size_t(m) * n), one(n);
  Buffer<bf16> rounded(size_t(m) * n);
  bool have_first = false;
  double worst = 0, worst_bf16 = 0;
  const std::string name = std::string(c.kFp8 ? "fp8 " : "bf16 ") + std::to_string(m) + "x" +
                           std::to_string(n) + "x" + std::to_string(k) + " groups " +
                           std::to_string(g);
  for (int v = 0; v < gemm_sm90_num_variants(); ++v) {
    if (!gemm_sm90_variant_fits(c.params(nullptr, true), v)) continue;
    Buffer<float>& d = have_first ? out : first;
    d.poison();
    FATHOM_CUDA(gemm_sm90_variant(c.params(d.get(), true), v, nullptr));
    FATHOM_CUDA(cudaDeviceSynchronize());
    const double err = relative_error(d.get(), ref.get(), ref.size());
    worst = std::max(worst, err);
    expect(
        err < (c.kFp8 ? 2e-4 : 2e-6 * std::max(1.0, k / 1024.0)),
        (name + " against fp64: " + gemm_sm90_variant_name(v) + " " + std::to_string(err)).c_str());
    if (have_first) {
      const size_t bad = different_bits(first.get(), out.get(), first.size());
      expect(bad == 0, (name + " bits of " + gemm_sm90_variant_name(v) + ": " +
                        std::to_string(bad) + " differ")
                           .c_str());
    }
    have_first = true;
    rounded.poison();
    FATHOM_CUDA(gemm_sm90_variant(c.params(rounded.get(), false), v, nullptr));
    FATHOM_CUDA(cudaDeviceSynchronize());
    const double err16 = relative_error(rounded.get(), ref.get(), ref.size());
    worst_bf16 = std::max(worst_bf16, err16);
    expect(err16 < 3.5e-3, (name + " bf16 output: " + std::to_string(err16)).c_str());
  }
  // A row alone.
  for (int r : {0, m / 2, m - 1}) {
    int group = 0;
    while (group + 1 < g && c.begin[group + 1] <= r) ++group;
    GemmSm90 p = c.params(one.get(), true);
    p.a = c.a.get() + int64_t{r} * k;
    p.w = c.w.get() + int64_t{group} * n * k;
    p.M = 1, p.group_begin = nullptr, p.num_groups = 1;
    if (c.kFp8)
      p.a_scale = c.sa.get() + r, p.w_scale = c.sw.get() + int64_t{group} * (n / 128) * (k / 128);
    FATHOM_CUDA(gemm_sm90(p, nullptr));
    FATHOM_CUDA(cudaDeviceSynchronize());
    const size_t bad = different_bits(first.get() + int64_t{r} * n, one.get(), n);
    expect(bad == 0,
           (name + " row " + std::to_string(r) + " alone: " + std::to_string(bad) + " bits differ")
               .c_str());
  }
  std::printf("gemm %-36s error %.1e, rounded %.1e\n", name.c_str(), worst, worst_bf16);
}

template <class T>
void speed(const char* what, int m, int n, int k, int g, bool all) {
  const Case<T> c(m, n, k, g, true);
  Buffer<bf16> d(size_t(m) * n);
  const double flops = 2.0 * m * n * k;
  const double bytes =
      double(sizeof(T)) * (double(m) * k + double(std::min(g, m)) * n * k) + 2.0 * m * n;
  const double floor_us = std::max(flops / (c.kFp8 ? 1979e12 : 989e12), bytes / 3.0e12) * 1e6;
  const int chosen = gemm_sm90_choose(c.params(d.get(), false));
  for (int v = 0; v < gemm_sm90_num_variants(); ++v) {
    const GemmSm90 p = c.params(d.get(), false);
    if (!gemm_sm90_variant_fits(p, v) || (!all && v != chosen)) continue;
    const double ms = time_ms([&](cudaStream_t s) { FATHOM_CUDA(gemm_sm90_variant(p, v, s)); });
    std::printf(
        "%-22s %5dx%5dx%5d g%-3d %c %-34s %8.1f us %7.1f TFLOP/s %6.2f TB/s, floor %.1f us\n", what,
        m, n, k, g, v == chosen ? '*' : ' ', gemm_sm90_variant_name(v), ms * 1e3, flops / ms * 1e-9,
        bytes / ms * 1e-9, floor_us);
  }
}

}  // namespace

void check_gemm() {
  for (auto [m, n, k] : {std::array{1, 4096, 512},
                         {7, 512, 4096},
                         {64, 264, 1000},
                         {130, 520, 200},
                         {300, 1024, 2048},
                         {513, 768, 7168}})
    check<bf16>(m, n, k);
  for (auto [m, n, k] : {std::array{1, 2048, 512},
                         {7, 512, 4096},
                         {130, 384, 256},
                         {300, 1024, 2048},
                         {513, 768, 7168}})
    check<e4m3>(m, n, k);
  check<bf16>(300, 512, 512, 13);
  check<bf16>(1500, 256, 1024, 64);
  check<e4m3>(300, 512, 512, 13);
  check<e4m3>(1500, 256, 1024, 64);
}

void time_gemm(bool all) {
  speed<bf16>("dense", 4096, 4096, 8192, 1, all);
  speed<bf16>("dense wq_b", 4096, 32768, 1024, 1, all);
  speed<bf16>("dense wkv", 4096, 512, 4096, 1, all);
  speed<bf16>("grouped w13", 24576, 4096, 4096, 64, all);
  speed<bf16>("grouped w2", 24576, 4096, 2048, 64, all);
  speed<bf16>("decode 1", 1, 4096, 4096, 1, all);
  speed<bf16>("decode 64", 64, 4096, 4096, 1, all);
  speed<bf16>("decode wq_b", 64, 32768, 1024, 1, all);
  speed<bf16>("decode experts", 384, 4096, 4096, 64, all);
  speed<e4m3>("dense", 4096, 4096, 8192, 1, all);
  speed<e4m3>("grouped w13", 24576, 4096, 4096, 64, all);
  speed<e4m3>("grouped w2", 24576, 4096, 2048, 64, all);
  speed<e4m3>("decode 64", 64, 4096, 4096, 1, all);
  speed<e4m3>("decode experts", 384, 4096, 4096, 64, all);
}

}  // namespace fathom::sm90
