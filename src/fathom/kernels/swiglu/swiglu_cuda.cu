// One thread per element; 16 threads for the dot product of a (token, slot).
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/swiglu/swiglu_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

// min(limit, x) and max(-limit, x) give x when x is NaN: a NaN stays visible.
__device__ inline float clamp_gate(float g, float limit) {
  return limit > 0 ? min_of(limit, g) : g;
}
__device__ inline float clamp_up(float u, float limit) {
  return limit > 0 ? max_of(-limit, min_of(limit, u)) : u;
}

__global__ void swiglu_fwd_kernel(int64_t n, float limit, const float* g, const float* u,
                                  float* a) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const float gate = clamp_gate(g[i], limit);
  a[i] = (gate * sigmoid_of(gate)) * clamp_up(u[i], limit);
}

__global__ void swiglu_bwd_kernel(int64_t n, float limit, const float* g, const float* u,
                                  const float* da, float* dg, float* du) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const float gate = g[i], up = u[i], d = da[i];
  const float gc = clamp_gate(gate, limit), uc = clamp_up(up, limit);
  const float sigma = sigmoid_of(gc);
  const float slope = sigma * fmaf(gc, 1.0f - sigma, 1.0f);
  float dup = d * (gc * sigma);
  float dgate = (d * uc) * slope;
  if (limit > 0) {
    dup = up <= limit && -limit <= up ? dup : 0.0f;
    dgate = gate <= limit ? dgate : 0.0f;
  }
  dg[i] = dgate;
  du[i] = dup;
}

__global__ void moe_dispatch_kernel(int64_t n, int64_t K, int64_t D, const float* x,
                                    const int32_t* slot_row, float* rows) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const int64_t slot = i / D;
  rows[slot_row[slot] * D + i % D] = x[slot / K * D + i % D];
}

__global__ void moe_combine_fwd_kernel(int64_t n, int64_t K, int64_t D, const float* rows,
                                       const int32_t* slot_row, const float* weights,
                                       const float* shared, float* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const int64_t t = i / D, d = i % D;
  float acc = 0.0f;
  for (int64_t j = t * K; j < (t + 1) * K; ++j) {
    acc = fmaf(weights != nullptr ? weights[j] : 1.0f, rows[slot_row[j] * D + d], acc);
  }
  if (shared != nullptr) acc = acc + shared[i];
  out[i] = acc;
}

__global__ void moe_combine_bwd_kernel(int64_t num_slots, int64_t K, int64_t D, const float* rows,
                                       const int32_t* slot_row, const float* weights,
                                       const float* dout, float* drows, float* dweights) {
  const int64_t slot =
      blockIdx.x * static_cast<int64_t>(kThreads / kRowLanes) + threadIdx.x / kRowLanes;
  if (slot >= num_slots) return;
  const float* g = dout + slot / K * D;
  const int64_t at = slot_row[slot] * D;
  const float dot = dot_lanes(rows + at, g, D);
  if (row_lane() == 0) dweights[slot] = dot;
  for (int64_t d = row_lane(); d < D; d += kRowLanes) drows[at + d] = weights[slot] * g[d];
}

}  // namespace

void swiglu_fwd(Device& device, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, float* a) {
  const int64_t n = num_rows * I;
  if (n == 0) return;
  FATHOM_LAUNCH(device, swiglu_fwd_kernel, blocks_for(n, kThreads), kThreads, 0, n, limit, g, u, a);
}

void swiglu_bwd(Device& device, int64_t num_rows, int64_t I, float limit, const float* g,
                const float* u, const float* da, float* dg, float* du) {
  const int64_t n = num_rows * I;
  if (n == 0) return;
  FATHOM_LAUNCH(device, swiglu_bwd_kernel, blocks_for(n, kThreads), kThreads, 0, n, limit, g, u, da,
                dg, du);
}

void moe_dispatch(Device& device, int64_t T, int64_t K, int64_t D, const float* x,
                  const int32_t* slot_row, float* rows) {
  const int64_t n = T * K * D;
  if (n == 0) return;
  FATHOM_LAUNCH(device, moe_dispatch_kernel, blocks_for(n, kThreads), kThreads, 0, n, K, D, x,
                slot_row, rows);
}

void moe_combine_fwd(Device& device, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* shared,
                     float* out) {
  const int64_t n = T * D;
  if (n == 0) return;
  FATHOM_LAUNCH(device, moe_combine_fwd_kernel, blocks_for(n, kThreads), kThreads, 0, n, K, D, rows,
                slot_row, weights, shared, out);
}

void moe_combine_bwd(Device& device, int64_t T, int64_t K, int64_t D, const float* rows,
                     const int32_t* slot_row, const float* weights, const float* dout, float* drows,
                     float* dweights) {
  if (T * K == 0) return;
  FATHOM_LAUNCH(device, moe_combine_bwd_kernel, blocks_for(T * K, kThreads / kRowLanes), kThreads,
                0, T * K, K, D, rows, slot_row, weights, dout, drows, dweights);
}

}  // namespace fathom::cuda
