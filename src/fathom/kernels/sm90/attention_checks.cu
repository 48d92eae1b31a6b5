// Sparse attention: against fp64, bits across variants, batches, layouts and padding, and speed.
#include <cuda_fp8.h>

#include <string>

#include "fathom/kernels/sm90/checks.h"
#include "fathom/kernels/sm90/harness.h"
#include "fathom/kernels/sparse_attention/sparse_attention_bwd_sm90.h"
#include "fathom/kernels/sparse_attention/sparse_attention_sm90.h"

namespace fathom::sm90 {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kDim = 512;

// The equation: one CTA a (query, head), all keys in one softmax, fp64.
__global__ void attention_ref(SparseAttentionSm90 p, double* out, double* lse) {
  extern __shared__ double s[];
  const int t = blockIdx.x, h = blockIdx.y;
  const int picks = p.picks == nullptr       ? 0
                    : p.num_picks == nullptr ? p.picks_stride
                                             : p.num_picks[t];
  const int n = p.window_keys + picks;
  const bf16* q = p.q + (int64_t{t} * p.H + h) * kDim;
  auto key = [&](int j) -> const bf16* {
    const bool w = j < p.window_keys;
    const int row = w ? p.window_rows[int64_t{t} * p.window_keys + j]
                      : p.picks[int64_t{t} * p.picks_stride + j - p.window_keys];
    if (row < 0) return nullptr;
    return static_cast<const bf16*>(w ? p.window.data : p.entries.data) + int64_t{row} * kDim;
  };
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const bf16* k = key(j);
    double dot = 0;
    if (k != nullptr)
      for (int d = 0; d < kDim; ++d)
        dot += double(__bfloat162float(q[d])) * double(__bfloat162float(k[d]));
    s[j] = k == nullptr ? -INFINITY : dot * double(p.scale);
  }
  __syncthreads();
  double m = p.sink[h];
  for (int j = 0; j < n; ++j) m = fmax(m, s[j]);
  double z = exp(double(p.sink[h]) - m);
  for (int j = 0; j < n; ++j) z += exp(s[j] - m);
  for (int d = threadIdx.x; d < kDim; d += blockDim.x) {
    double o = 0;
    for (int j = 0; j < n; ++j)
      if (const bf16* k = key(j)) o += exp(s[j] - m) * double(__bfloat162float(k[d]));
    out[(int64_t{t} * p.H + h) * kDim + d] = o / z;
  }
  if (threadIdx.x == 0) lse[int64_t{t} * p.H + h] = m + log(z);
}

// The equations of the backward, fp64. First P and dS of a (query, head), dq and dsink; then the
// keys of a query.
struct BackwardRef {
  SparseAttentionSm90 f;
  const bf16* dout;
  const double* lse;
  double *p, *ds, *dq, *dwindow, *dentries, *dsink;
  int list;
};
__device__ const bf16* ref_key(const BackwardRef& r, int t, int j, int& row) {
  const bool w = j < r.f.window_keys;
  const int e = j - r.f.window_keys;
  if (!w && (r.f.picks == nullptr ||
             e >= (r.f.num_picks == nullptr ? r.f.picks_stride : r.f.num_picks[t])))
    return nullptr;
  row = w ? r.f.window_rows[int64_t{t} * r.f.window_keys + j]
          : r.f.picks[int64_t{t} * r.f.picks_stride + e];
  if (row < 0) return nullptr;
  return static_cast<const bf16*>(w ? r.f.window.data : r.f.entries.data) + int64_t{row} * kDim;
}
__global__ void backward_ref_queries(BackwardRef r) {
  const int t = blockIdx.x, h = blockIdx.y;
  const int64_t th = int64_t{t} * r.f.H + h;
  const bf16 *q = r.f.q + th * kDim, *g = r.dout + th * kDim;
  __shared__ double delta;
  if (threadIdx.x == 0) {
    delta = 0;
    for (int d = 0; d < kDim; ++d)
      delta += double(__bfloat162float(r.f.out[th * kDim + d])) * double(__bfloat162float(g[d]));
    atomicAdd(&r.dsink[h], -delta * exp(double(r.f.sink[h]) - r.lse[th]));
  }
  __syncthreads();
  for (int j = threadIdx.x; j < r.list; j += blockDim.x) {
    int row = 0;
    const bf16* k = ref_key(r, t, j, row);
    double s = 0, dp = 0;
    if (k != nullptr)
      for (int d = 0; d < kDim; ++d) {
        s += double(__bfloat162float(q[d])) * double(__bfloat162float(k[d]));
        dp += double(__bfloat162float(g[d])) * double(__bfloat162float(k[d]));
      }
    const double p = k == nullptr ? 0.0 : exp(s * double(r.f.scale) - r.lse[th]);
    r.p[th * r.list + j] = p;
    r.ds[th * r.list + j] = p * (dp - delta) * double(r.f.scale);
  }
  __syncthreads();
  for (int d = threadIdx.x; d < kDim; d += blockDim.x) {
    double sum = 0;
    for (int j = 0; j < r.list; ++j) {
      int row = 0;
      if (const bf16* k = ref_key(r, t, j, row))
        sum += r.ds[th * r.list + j] * double(__bfloat162float(k[d]));
    }
    r.dq[th * kDim + d] = sum;
  }
}
__global__ void backward_ref_keys(BackwardRef r) {
  const int t = blockIdx.x, j = blockIdx.y;
  int row = 0;
  if (ref_key(r, t, j, row) == nullptr) return;
  double* out = (j < r.f.window_keys ? r.dwindow : r.dentries) + int64_t{row} * kDim;
  for (int d = threadIdx.x; d < kDim; d += blockDim.x) {
    double sum = 0;
    for (int h = 0; h < r.f.H; ++h) {
      const int64_t th = int64_t{t} * r.f.H + h;
      sum += r.ds[th * r.list + j] * double(__bfloat162float(r.f.q[th * kDim + d])) +
             r.p[th * r.list + j] * double(__bfloat162float(r.dout[th * kDim + d]));
    }
    atomicAdd(&out[d], sum);
  }
}

// Random FP8 pages, and the BF16 rows that they decode to.
__global__ void make_pages(uint8_t* pages, int64_t page_bytes, int log2_page, bf16* rows, int n,
                           uint64_t seed) {
  const int row = blockIdx.x;
  if (row >= n) return;
  const int entries = 1 << log2_page, in_page = row & (entries - 1);
  uint8_t* page = pages + (row >> log2_page) * page_bytes;
  for (int d = threadIdx.x; d < kDim; d += blockDim.x) {
    const float x = noise(seed, uint64_t(row) * kDim + d);
    if (d < 448) {
      const int e = 127 - 6 + int(mix(seed + row * 8 + d / 64) % 4);
      const float scale = exp2f(float(e - 127));
      const __nv_fp8_e4m3 code(x / scale);
      page[in_page * 576 + d] = code.__x;
      rows[int64_t{row} * kDim + d] = __float2bfloat16(float(code) * scale);
      page[entries * 576 + in_page * 8 + d / 64] = uint8_t(e);
    } else {
      const bf16 b = __float2bfloat16(x);
      reinterpret_cast<bf16*>(page + in_page * 576 + 448)[d - 448] = b;
      rows[int64_t{row} * kDim + d] = b;
    }
  }
  if (threadIdx.x == 0) page[entries * 576 + in_page * 8 + 7] = 0;
}

struct Case {
  int T, H, window, picks, entries, log2_page;
  int64_t page_bytes;
  Buffer<bf16> q, window_kv, entry_kv;
  Buffer<uint8_t> window_pages, entry_pages;
  std::vector<int32_t> window_host, picks_host, num_host;
  Buffer<int32_t> window_rows, pick_rows, num_picks;
  Buffer<float> sink;

  static std::vector<int32_t> make_window(int T, int window) {
    std::vector<int32_t> v(size_t(T) * window, -1);
    for (int t = 0; t < T; ++t)
      for (int j = 0; j < std::min(window, t + 1); ++j)
        v[size_t(t) * window + j] = std::max(0, t - window + 1) + j;
    return v;
  }
  // Ascending random picks; ragged: fewer in some rows, holes in others.
  static std::vector<int32_t> make_picks(int T, int k, int entries) {
    std::vector<int32_t> v(size_t(T) * k, -1);
    for (int t = 0; t < T; ++t) {
      int need = std::min(k, entries), left = entries;
      int32_t* out = &v[size_t(t) * k];
      for (int e = 0; e < entries && need > 0; ++e, --left)
        if (int64_t(mix(uint64_t(t) * 1000003 + e) % uint64_t(left)) < need) *out++ = e, --need;
    }
    return v;
  }
  static std::vector<int32_t> make_num(int T, int k, bool ragged) {
    std::vector<int32_t> v(T, k);
    if (ragged)
      for (int t = 0; t < T; ++t) v[t] = int32_t(mix(t * 7 + 1) % (k + 1));
    return v;
  }
  Case(int T_, int H_, int window_, int picks_, int entries_, bool ragged)
      : T(T_),
        H(H_),
        window(window_),
        picks(picks_),
        entries(entries_),
        log2_page(6),
        page_bytes((64 * 584 + 575) / 576 * 576),
        q(size_t(T) * H * kDim),
        window_kv(size_t(T) * kDim),
        entry_kv(size_t(entries) * kDim),
        window_pages(size_t((T + 63) / 64) * page_bytes),
        entry_pages(size_t((entries + 63) / 64) * page_bytes),
        window_host(make_window(T, window)),
        picks_host(make_picks(T, picks, entries)),
        num_host(make_num(T, picks, ragged)),
        window_rows(window_host),
        pick_rows(picks_host),
        num_picks(num_host),
        sink(H) {
    fill(q, 21, 1.5f);
    fill(sink, 22, 2.0f);
    make_pages<<<T, 128>>>(window_pages.get(), page_bytes, log2_page, window_kv.get(), T, 23);
    make_pages<<<entries, 128>>>(entry_pages.get(), page_bytes, log2_page, entry_kv.get(), entries,
                                 24);
    FATHOM_CUDA(cudaDeviceSynchronize());
  }
  SparseAttentionSm90 params(KvLayout layout, bf16* out, float* lse) const {
    SparseAttentionSm90 p{};
    p.q = q.get();
    p.layout = layout;
    p.window.data =
        layout == KvLayout::kBf16 ? static_cast<const void*>(window_kv.get()) : window_pages.get();
    p.entries.data =
        layout == KvLayout::kBf16 ? static_cast<const void*>(entry_kv.get()) : entry_pages.get();
    p.window.log2_page = p.entries.log2_page = log2_page;
    p.window.page_bytes = p.entries.page_bytes = page_bytes;
    p.window_rows = window_rows.get();
    p.window_keys = window;
    if (picks > 0) p.picks = pick_rows.get(), p.picks_stride = picks, p.num_picks = num_picks.get();
    p.sink = sink.get();
    p.scale = 0.04419417382f;
    p.T = T, p.H = H;
    p.out = out, p.lse = lse;
    return p;
  }
};

void check(int T, int H, int window, int picks, int entries, bool ragged) {
  const Case c(T, H, window, picks, entries, ragged);
  const size_t n = size_t(T) * H * kDim, rows = size_t(T) * H;
  const std::string name = std::to_string(T) + " queries, " + std::to_string(H) + " heads, " +
                           std::to_string(window) + "+" + std::to_string(picks) +
                           (ragged ? " ragged" : "");
  Buffer<double> ref(n), ref_lse(rows);
  attention_ref<<<dim3(T, H), 128, (window + picks) * 8>>>(
      c.params(KvLayout::kBf16, nullptr, nullptr), ref.get(), ref_lse.get());
  FATHOM_CUDA(cudaDeviceSynchronize());
  Buffer<bf16> first(n), out(n);
  Buffer<float> first_lse(rows), lse(rows);
  bool have_first = false;
  double worst = 0, worst_lse = 0;
  for (int v = 0; v < sparse_attention_sm90_num_variants(); ++v)
    for (KvLayout layout : {KvLayout::kBf16, KvLayout::kFp8}) {
      SparseAttentionSm90 p = c.params(layout, out.get(), lse.get());
      if (!sparse_attention_sm90_variant_fits(p, v)) continue;
      if (!have_first) p.out = first.get(), p.lse = first_lse.get();
      for (int run = 0; run < 3; ++run) {  // the same bits from run to run, too
        if (have_first) out.poison(), lse.poison();
        FATHOM_CUDA(sparse_attention_sm90_variant(p, v, nullptr));
        FATHOM_CUDA(cudaDeviceSynchronize());
        if (run == 0) {
          const double err = relative_error(p.out, ref.get(), n);
          const double err_lse = relative_error(p.lse, ref_lse.get(), rows);
          worst = std::max(worst, err), worst_lse = std::max(worst_lse, err_lse);
          expect(err < 4e-3 && err_lse < 1e-5,
                 (name + " against fp64, " + sparse_attention_sm90_variant_name(v) + ": " +
                  std::to_string(err) + " lse " + std::to_string(err_lse))
                     .c_str());
        }
        if (have_first) {
          const size_t bad = different_bits(first.get(), out.get(), n) +
                             different_bits(first_lse.get(), lse.get(), rows);
          expect(bad == 0, (name + " bits, " + sparse_attention_sm90_variant_name(v) + ": " +
                            std::to_string(bad) + " differ")
                               .c_str());
        }
        have_first = true;
        p.out = out.get(), p.lse = lse.get();
      }
      // One query alone.
      for (int t : {0, T / 2, T - 1}) {
        SparseAttentionSm90 one = p;
        one.q += int64_t{t} * H * kDim;
        one.window_rows += int64_t{t} * window;
        if (picks > 0) one.picks += int64_t{t} * picks, one.num_picks += t;
        one.T = 1;
        out.poison();
        FATHOM_CUDA(sparse_attention_sm90_variant(one, v, nullptr));
        FATHOM_CUDA(cudaDeviceSynchronize());
        const size_t bad =
            different_bits(first.get() + size_t(t) * H * kDim, out.get(), size_t(H) * kDim);
        expect(bad == 0,
               (name + " query " + std::to_string(t) + " alone: " + std::to_string(bad) + " differ")
                   .c_str());
      }
      // The same lists padded with holes.
      const int wide = window + 64;
      std::vector<int32_t> padded(size_t(T) * wide, -1);
      for (int t = 0; t < T; ++t)
        std::copy_n(&c.window_host[size_t(t) * window], window, &padded[size_t(t) * wide]);
      Buffer<int32_t> padded_dev(padded);
      p.window_rows = padded_dev.get();
      p.window_keys = wide;
      out.poison();
      FATHOM_CUDA(sparse_attention_sm90_variant(p, v, nullptr));
      FATHOM_CUDA(cudaDeviceSynchronize());
      const size_t bad = different_bits(first.get(), out.get(), n);
      expect(bad == 0, (name + " padded with holes: " + std::to_string(bad) + " differ").c_str());
    }
  std::printf("attention %-44s error %.1e, lse %.1e\n", name.c_str(), worst, worst_lse);
}

template <class T>
std::vector<T> zeros(size_t n) {
  return std::vector<T>(n, T(0));
}

void check_backward(int T, int H, int window, int picks, int entries, bool ragged) {
  const Case c(T, H, window, picks, entries, ragged);
  const size_t n = size_t(T) * H * kDim, rows = size_t(T) * H;
  const int list = window + picks;
  const std::string name = "backward " + std::to_string(T) + " queries, " + std::to_string(H) +
                           " heads, " + std::to_string(window) + "+" + std::to_string(picks);
  Buffer<bf16> out(n), dout(n);
  Buffer<float> lse(rows);
  fill(dout, 29, 0.3f);
  const SparseAttentionSm90 f = c.params(KvLayout::kBf16, out.get(), lse.get());
  FATHOM_CUDA(sparse_attention_sm90(f, nullptr));

  Buffer<double> o(n), ref_lse(rows), p(rows * list), ds(rows * list), dq(n),
      dwindow(zeros<double>(size_t(T) * kDim)), dentries(zeros<double>(size_t(entries) * kDim)),
      dsink(zeros<double>(H));
  attention_ref<<<dim3(T, H), 128, list * 8>>>(f, o.get(), ref_lse.get());
  const BackwardRef ref{f,        dout.get(),    ref_lse.get(),  p.get(),     ds.get(),
                        dq.get(), dwindow.get(), dentries.get(), dsink.get(), list};
  backward_ref_queries<<<dim3(T, H), 128>>>(ref);
  backward_ref_keys<<<dim3(T, list), 128>>>(ref);
  FATHOM_CUDA(cudaDeviceSynchronize());

  struct Result {
    Buffer<bf16> dq;
    Buffer<float> dwindow, dentries, dsink;
    Result(size_t n, int T, int entries, int H)
        : dq(n),
          dwindow(zeros<float>(size_t(T) * kDim)),
          dentries(zeros<float>(size_t(entries) * kDim)),
          dsink(zeros<float>(H)) {}
  };
  auto run = [&](const Result& r, int per_pass) {
    SparseAttentionBwdSm90 b{};
    b.fwd = f;
    b.dout = dout.get();
    b.num_window_rows = T, b.num_entries = entries;
    b.dq = r.dq.get(), b.dwindow = r.dwindow.get(), b.dentries = r.dentries.get(),
    b.dsink = r.dsink.get();
    b.queries_per_pass = per_pass;
    b.workspace_bytes = sparse_attention_bwd_sm90_bytes(b);
    Buffer<char> workspace(b.workspace_bytes);
    b.workspace = workspace.get();
    FATHOM_CUDA(sparse_attention_bwd_sm90(b, nullptr));
    FATHOM_CUDA(cudaDeviceSynchronize());
  };
  const Result first(n, T, entries, H);
  run(first, T);
  const double e_q = relative_error(first.dq.get(), dq.get(), n);
  const double e_w = relative_error(first.dwindow.get(), dwindow.get(), dwindow.size());
  const double e_e =
      picks > 0 ? relative_error(first.dentries.get(), dentries.get(), dentries.size()) : 0;
  const double e_s = relative_error(first.dsink.get(), dsink.get(), dsink.size());
  expect(e_q < 5e-3 && e_w < 5e-3 && e_e < 5e-3 && e_s < 5e-3, (name + " against fp64").c_str());
  for (int per_pass : {T, T, std::max(1, T / 3), 1}) {  // from run to run, and cut into passes
    const Result again(n, T, entries, H);
    run(again, per_pass);
    const size_t bad =
        different_bits(first.dq.get(), again.dq.get(), n) +
        different_bits(first.dwindow.get(), again.dwindow.get(), first.dwindow.size()) +
        different_bits(first.dentries.get(), again.dentries.get(), first.dentries.size()) +
        different_bits(first.dsink.get(), again.dsink.get(), first.dsink.size());
    expect(bad == 0, (name + " in passes of " + std::to_string(per_pass) + ": " +
                      std::to_string(bad) + " bits differ")
                         .c_str());
  }
  std::printf("attention %-44s dq %.1e, window %.1e, entries %.1e, sink %.1e\n", name.c_str(), e_q,
              e_w, e_e, e_s);
}

void speed_backward(int T, int H, int picks, int entries, int per_pass) {
  const Case c(T, H, 128, picks, entries, false);
  const size_t n = size_t(T) * H * kDim;
  Buffer<bf16> out(n), dout(n), dq(n);
  Buffer<float> lse(size_t(T) * H), dwindow(zeros<float>(size_t(T) * kDim)),
      dentries(zeros<float>(size_t(entries) * kDim)), dsink(zeros<float>(H));
  fill(dout, 29, 0.3f);
  SparseAttentionBwdSm90 b{};
  b.fwd = c.params(KvLayout::kBf16, out.get(), lse.get());
  FATHOM_CUDA(sparse_attention_sm90(b.fwd, nullptr));
  b.dout = dout.get();
  b.num_window_rows = T, b.num_entries = entries;
  b.dq = dq.get(), b.dwindow = dwindow.get(), b.dentries = dentries.get(), b.dsink = dsink.get();
  b.queries_per_pass = per_pass;
  b.workspace_bytes = sparse_attention_bwd_sm90_bytes(b);
  Buffer<char> workspace(b.workspace_bytes);
  b.workspace = workspace.get();
  const double ms = time_ms([&](cudaStream_t s) { FATHOM_CUDA(sparse_attention_bwd_sm90(b, s)); });
  const double flops = 10.0 * T * H * (128 + picks) * kDim;
  std::printf(
      "attention backward   %4d queries %3d heads 128+%-4d %5d entries, passes of %d, %.0f MiB: "
      "%8.1f us %6.1f TFLOP/s, floor %.1f us\n",
      T, H, picks, entries, per_pass, double(b.workspace_bytes) / 1048576, ms * 1e3,
      flops / ms * 1e-9, flops / 989e12 * 1e6);
}

void speed(const char* what, int T, int H, int picks, int entries, bool all) {
  const Case c(T, H, 128, picks, entries, false);
  Buffer<bf16> out(size_t(T) * H * kDim);
  Buffer<float> lse(size_t(T) * H);
  const double flops = 4.0 * T * H * (128 + picks) * kDim;
  bool taken[2] = {false, false};
  for (int v = 0; v < sparse_attention_sm90_num_variants(); ++v)
    for (KvLayout layout : {KvLayout::kBf16, KvLayout::kFp8}) {
      const auto p = c.params(layout, out.get(), lse.get());
      if (!sparse_attention_sm90_variant_fits(p, v)) continue;
      const bool is_taken = !taken[layout == KvLayout::kFp8];
      taken[layout == KvLayout::kFp8] = true;
      if (!all && !is_taken) continue;
      const double ms =
          time_ms([&](cudaStream_t s) { FATHOM_CUDA(sparse_attention_sm90_variant(p, v, s)); });
      std::printf(
          "attention %-10s %4d queries %3d heads 128+%-4d %c %-40s %8.1f us %6.1f TFLOP/s, floor "
          "%.1f us\n",
          what, T, H, picks, is_taken ? '*' : ' ', sparse_attention_sm90_variant_name(v), ms * 1e3,
          flops / ms * 1e-9, flops / 989e12 * 1e6);
    }
}

}  // namespace

void check_attention() {
  check(67, 64, 128, 512, 700, true);
  check(3, 128, 128, 1024, 1100, true);
  check(1, 64, 64, 0, 64, false);
  check(150, 64, 128, 96, 300, false);
  check(140, 64, 128, 33, 50, true);
  check_backward(67, 64, 128, 512, 700, true);
  check_backward(5, 128, 128, 1024, 1100, true);
  check_backward(1, 64, 64, 0, 64, false);
  check_backward(200, 64, 128, 33, 50, true);
}

void time_attention(bool all) {
  speed("prefill", 4096, 64, 512, 16384, all);
  speed("prefill", 4096, 64, 512, 1024, false);
  speed("Pro", 2048, 128, 1024, 16384, false);
  speed_backward(4096, 64, 512, 1024, 4096);
  speed_backward(4096, 64, 512, 1024, 1024);
  speed_backward(4096, 64, 512, 16384, 4096);
  speed_backward(2048, 128, 1024, 16384, 1024);
  speed("decode", 64, 64, 512, 65536, all);
  speed("decode", 128, 64, 512, 65536, all);
  speed("decode", 1, 64, 512, 65536, false);
}

}  // namespace fathom::sm90
