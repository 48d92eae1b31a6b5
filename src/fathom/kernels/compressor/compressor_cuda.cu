// One thread per (run, channel), which walks the run's tokens; backward one per (entry, channel).
#include <algorithm>

#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/compressor/compressor_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 64;

/// Softmax pooling of one channel so far: largest gate, sum of weights, weighted sum of values.
struct Pool {
  float m, l, a;
};

__device__ inline Pool empty_pool() { return {-__int_as_float(0x7F800000), 0.0f, 0.0f}; }

__device__ inline void take(Pool& pool, float v, float g) {
  const float difference = pool.m - g;
  const float decay =
      exp_of(__uint_as_float(__float_as_uint(difference) | 0x80000000u));  // exp(-|m - g|)
  const bool larger = pool.m < g;
  const float r = larger ? decay : 1.0f, w = larger ? 1.0f : decay;
  pool.m = max_of(pool.m, g);
  pool.l = fmaf(pool.l, r, w);
  pool.a = fmaf(pool.a, r, w * v);
}

__global__ void compressor_fwd_kernel(const CompressorFwd p, const CompressorRun* runs) {
  const int64_t channel = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (channel >= p.c) return;
  const CompressorRun run = runs[blockIdx.y];
  const int64_t row = p.coff * p.c;
  const bool overlap = p.coff == 2;
  float* const open_state = run.state + channel;
  float* const next_state = open_state + 3 * p.c;
  Pool open = empty_pool(), next = empty_pool();
  if (run.state != nullptr) {
    open = {open_state[0], open_state[p.c], open_state[2 * p.c]};
    if (overlap) next = {next_state[0], next_state[p.c], next_state[2 * p.c]};
  }
  float* entry = p.entries + run.first_entry * p.c + channel;
  const int64_t own = overlap ? p.c : 0;  // where the channels of the token's own window start
  int64_t slot = run.start_pos % p.ratio;
  for (int64_t t = run.first_row; t < run.first_row + run.num_tokens; ++t) {
    const float* v = p.v + t * row + channel;
    const float* g = p.g + t * row + channel;
    const float* ape = p.ape + slot * row + channel;
    take(open, v[own], g[own] + ape[own]);
    if (overlap) take(next, v[0], g[0] + ape[0]);
    if (++slot == p.ratio) {
      slot = 0;
      *entry = open.a / open.l;
      entry += p.c;
      open = next;
      next = empty_pool();
    }
  }
  if (run.state == nullptr) return;
  open_state[0] = open.m;
  open_state[p.c] = open.l;
  open_state[2 * p.c] = open.a;
  if (!overlap) return;
  next_state[0] = next.m;
  next_state[p.c] = next.l;
  next_state[2 * p.c] = next.a;
}

__device__ inline void take_rows(Pool& pool, const CompressorBwd& p, int64_t begin, int64_t end,
                                 int64_t at) {
  const int64_t row = p.coff * p.c;
  for (int64_t t = begin; t < end; ++t) {
    take(pool, p.v[t * row + at], p.g[t * row + at] + p.ape[t % p.ratio * row + at]);
  }
}

__global__ void compressor_bwd_kernel(const CompressorBwd p) {
  const int64_t channel = blockIdx.y * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (channel >= p.c) return;
  const int64_t entry = blockIdx.x, row = p.coff * p.c;
  const bool overlap = p.coff == 2;
  const int64_t own_begin = entry * p.ratio, own_end = own_begin + p.ratio;
  const int64_t before = overlap && entry > 0 ? own_begin - p.ratio : own_begin;
  const int64_t own_column = channel + (overlap ? p.c : 0);
  Pool pool = empty_pool();
  take_rows(pool, p, before, own_begin, channel);
  take_rows(pool, p, own_begin, own_end, own_column);
  const float e = pool.a / pool.l;
  const float de = p.dentries[entry * p.c + channel];
  for (int64_t t = before; t < own_end; ++t) {
    const int64_t column = t < own_begin ? channel : own_column, at = t * row + column;
    const float g = p.g[at] + p.ape[t % p.ratio * row + column];
    const float weight = exp_of(g - pool.m) / pool.l;
    const float dv = weight * de;
    p.dv[at] = dv;
    p.dg[at] = dv * (p.v[at] - e);
  }
}

__global__ void compressor_ape_kernel(const CompressorBwd p) {
  const int64_t row = p.coff * p.c;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= p.ratio * row) return;
  float acc = p.dape[i];
  for (int64_t t = i / row; t < p.num_tokens; t += p.ratio) acc = acc + p.dg[t * row + i % row];
  p.dape[i] = acc;
}

}  // namespace

void compressor_fwd_runs(Device& device, const CompressorFwd& p,
                         const std::vector<CompressorRun>& runs) {
  // A grid's second dimension takes no more than 65,535.
  constexpr size_t kMaxRuns = 32768;
  for (size_t first = 0; first < runs.size(); first += kMaxRuns) {
    const std::vector<CompressorRun> piece(
        runs.begin() + static_cast<int64_t>(first),
        runs.begin() + static_cast<int64_t>(std::min(runs.size(), first + kMaxRuns)));
    const Scratch<CompressorRun> on_device(device, piece);
    const dim3 grid(blocks_for(p.c, kThreads), static_cast<unsigned>(piece.size()));
    FATHOM_LAUNCH(device, compressor_fwd_kernel, grid, kThreads, 0, p, on_device.get());
  }
}

void compressor_bwd(Device& device, const CompressorBwd& p) {
  if (p.num_tokens == 0) return;
  // Rows that reach no complete entry get zero; the others are written below.
  const size_t num_bytes = static_cast<size_t>(p.num_tokens * p.coff * p.c) * sizeof(float);
  device.clear(p.dv, num_bytes);
  device.clear(p.dg, num_bytes);
  const int64_t num_entries = p.num_tokens / p.ratio;
  if (num_entries > 0) {
    const dim3 grid(static_cast<unsigned>(num_entries), blocks_for(p.c, kThreads));
    FATHOM_LAUNCH(device, compressor_bwd_kernel, grid, kThreads, 0, p);
  }
  if (p.dape == nullptr) return;
  FATHOM_LAUNCH(device, compressor_ape_kernel, blocks_for(p.ratio * p.coff * p.c, kThreads),
                kThreads, 0, p);
}

}  // namespace fathom::cuda
