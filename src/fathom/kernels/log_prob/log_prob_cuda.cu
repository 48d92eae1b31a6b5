// Rows in blocks: their logits by the plain product, then 16 threads a chunk of the vocabulary,
// then one thread a row that merges the chunks upwards.
#include <algorithm>

#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/linear/linear_cuda.h"
#include "fathom/kernels/log_prob/log_prob_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 128, kHalves = kThreads / kRowLanes;
/// Logits held at a time; bits do not depend on it.
constexpr int64_t kLogits = int64_t{1} << 26;

/// log_prob_cpu.h's SoftmaxStats.
struct Stats {
  float max, sum, weighted;
};

__device__ inline float minus_infinity() { return -__int_as_float(0x7F800000); }

/// Divides the logits by the temperature and makes every chunk's statistics.
__global__ void chunk_stats_kernel(float* z, int64_t rows, int64_t V, int64_t chunk,
                                   int64_t num_chunks, float temperature, bool with_entropy,
                                   Stats* stats) {
  const int64_t item = blockIdx.x * static_cast<int64_t>(kHalves) + threadIdx.x / kRowLanes;
  if (item >= rows * num_chunks) return;
  const int64_t row = item / num_chunks, begin = item % num_chunks * chunk;
  const int64_t n = V - begin < chunk ? V - begin : chunk;
  float* x = z + row * V + begin;
  float best = minus_infinity();
  for (int64_t i = row_lane(); i < n; i += kRowLanes) {
    if (temperature != 1.0f) x[i] = x[i] / temperature;
    best = max_of(x[i], best);
  }
  best = max_lanes(best);
  Stats s{minus_infinity(), 0.0f, 0.0f};
  if (best != minus_infinity()) {
    float sum = 0.0f, weighted = 0.0f;
    for (int64_t i = row_lane(); i < n; i += kRowLanes) {
      const float below = x[i] - best;
      const float e = exp_of(below);
      sum = sum + e;
      if (with_entropy) weighted = fmaf(below, e, weighted);
    }
    s = {best, reduce_lanes(sum), reduce_lanes(weighted)};
  }
  if (row_lane() == 0) stats[item] = s;
}

__device__ inline Stats merge(const Stats& a, const Stats& b) {
  if (a.max == minus_infinity()) return b;
  if (b.max == minus_infinity()) return a;
  const float m = b.max > a.max ? b.max : a.max;
  const float da = a.max - m, db = b.max - m;  // one of them is 0, and e^0 is exactly 1
  const float e = exp_of(da + db);
  const float ea = b.max > a.max ? e : 1.0f, eb = b.max > a.max ? 1.0f : e;
  const float sum = fmaf(a.sum, ea, b.sum * eb);
  const float wa = fmaf(da, a.sum, a.weighted);
  const float wb = fmaf(db, b.sum, b.weighted);
  return {m, sum, fmaf(wa, ea, wb * eb)};
}

__global__ void merge_chunks_kernel(const LogProbFwd p, int64_t first_row, int64_t rows,
                                    const float* z, const Stats* stats, int64_t num_chunks,
                                    DeviceFault* fault) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (row >= rows) return;
  Stats s{minus_infinity(), 0.0f, 0.0f};
  for (int64_t c = 0; c < num_chunks; ++c) s = merge(s, stats[row * num_chunks + c]);
  const float lse = s.max + log_of(s.sum);
  const int64_t r = first_row + row, y = p.targets[r];
  const bool is_inside = y >= 0 && y < p.V;
  if (!is_inside) report_fault(fault, DeviceFaultKind::kTargetToken, r, p.V, p.targets[r]);
  p.log_probs[r] = (is_inside ? z[row * p.V + y] : 0.0f) - lse;
  if (p.lse != nullptr) p.lse[r] = lse;
  if (p.entropy != nullptr) p.entropy[r] = log_of(s.sum) - s.weighted / s.sum;
}

/// Logits to their gradient, in place.
__global__ void logit_gradient_kernel(const LogProbBwd b, int64_t first_row, int64_t n, float* z) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const LogProbFwd& p = b.fwd;
  const int64_t r = first_row + i / p.V, column = i % p.V;
  const float logit = p.temperature != 1.0f ? z[i] / p.temperature : z[i];
  const bool with_entropy = b.dentropy != nullptr;
  const float dlogp = b.dlog_probs[r];
  const float dentropy = with_entropy ? b.dentropy[r] : 0.0f;
  const float entropy = with_entropy ? p.entropy[r] : 0.0f;
  const float logp = logit - p.lse[r];
  const float prob = exp_of(logp);
  float g = column == p.targets[r] ? dlogp * (1.0f - prob) : 0.0f - dlogp * prob;
  if (with_entropy) g = fmaf(-(dentropy * prob), logp + entropy, g);
  z[i] = g / p.temperature;
}

int64_t rows_at_once(const LogProbFwd& p) { return std::clamp<int64_t>(kLogits / p.V, 1, p.R); }

/// Columns of the eighths that dhidden's sum is cut into, and how many of them there are.
int64_t columns_per_part(int64_t vocab) {
  return vocab_chunk_size(vocab) * ((vocab + 8 * 3232 - 1) / (8 * 3232));
}
int64_t num_hidden_parts(int64_t vocab) {
  const int64_t columns = columns_per_part(vocab);
  return (vocab + columns - 1) / columns;
}

__global__ void add_kernel(const float* from, int64_t n, float* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] += from[i];
}

/// dz W of a block of rows: one chain for each part, parts added by a pairwise tree.
void hidden_gradient(Device& device, const LogProbFwd& p, const float* dz, int64_t first,
                     int64_t rows, float* parts, float* dhidden) {
  const int64_t columns = columns_per_part(p.V), num_parts = num_hidden_parts(p.V);
  const int64_t n = rows * p.D;
  const auto part_begin = [&](int64_t part) {
    return part == 0 ? dhidden + first * p.D : parts + part * n;
  };
  for (int64_t part = 0; part < num_parts; ++part) {
    const int64_t begin = part * columns;
    linear_bwd_input(device, {.dy = dz + begin,
                              .dy_stride = p.V,
                              .w_panels = p.w_panels + begin * p.D,
                              .dx = part_begin(part),
                              .dx_stride = p.D,
                              .T = rows,
                              .N = std::min(columns, p.V - begin),
                              .K = p.D});
  }
  for (int64_t step = 1; step < num_parts; step *= 2) {
    for (int64_t part = 0; part + step < num_parts; part += 2 * step) {
      FATHOM_LAUNCH(device, add_kernel, blocks_for(n, kThreads), kThreads, 0,
                    part_begin(part + step), n, part_begin(part));
    }
  }
}

void compute_logits(Device& device, const LogProbFwd& p, int64_t first, int64_t rows, float* z) {
  linear_fwd(device, {.x = p.hidden + first * p.D,
                      .x_stride = p.D,
                      .w_panels = p.w_panels,
                      .y = z,
                      .y_stride = p.V,
                      .T = rows,
                      .N = p.V,
                      .K = p.D});
}

}  // namespace

void log_prob_fwd(Device& device, const LogProbFwd& p) {
  const int64_t chunk = vocab_chunk_size(p.V), num_chunks = (p.V + chunk - 1) / chunk;
  const int64_t at_once = rows_at_once(p);
  const Scratch<float> z(device, at_once * p.V);
  const Scratch<Stats> stats(device, at_once * num_chunks);
  for (int64_t first = 0; first < p.R; first += at_once) {
    const int64_t rows = std::min(at_once, p.R - first);
    compute_logits(device, p, first, rows, z.get());
    FATHOM_LAUNCH(device, chunk_stats_kernel, blocks_for(rows * num_chunks, kHalves), kThreads, 0,
                  z.get(), rows, p.V, chunk, num_chunks, p.temperature, p.entropy != nullptr,
                  stats.get());
    FATHOM_LAUNCH(device, merge_chunks_kernel, blocks_for(rows, kThreads), kThreads, 0, p, first,
                  rows, z.get(), stats.get(), num_chunks, device.fault());
  }
}

void log_prob_bwd(Device& device, const LogProbBwd& b) {
  const LogProbFwd& p = b.fwd;
  const int64_t at_once = rows_at_once(p);
  const Scratch<float> z(device, at_once * p.V);
  const Scratch<float> parts(device, num_hidden_parts(p.V) * at_once * p.D);
  // Row blocks upwards: the chain of dW over rows continues from block to block.
  for (int64_t first = 0; first < p.R; first += at_once) {
    const int64_t rows = std::min(at_once, p.R - first);
    compute_logits(device, p, first, rows, z.get());
    FATHOM_LAUNCH(device, logit_gradient_kernel, blocks_for(rows * p.V, kThreads), kThreads, 0, b,
                  first, rows * p.V, z.get());
    hidden_gradient(device, p, z.get(), first, rows, parts.get(), b.dhidden);
    if (b.dw_panels == nullptr) continue;
    linear_bwd_weight(device, {.x = p.hidden + first * p.D,
                               .x_stride = p.D,
                               .dy = z.get(),
                               .dy_stride = p.V,
                               .dw_panels = b.dw_panels,
                               .T = rows,
                               .N = p.V,
                               .K = p.D});
  }
}

}  // namespace fathom::cuda
