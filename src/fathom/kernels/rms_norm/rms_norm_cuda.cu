// 16 threads a row, so that row sums have the CPU's 16 lanes and its tree; one thread per column of
// dw, which walks the rows.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/rms_norm/rms_norm_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = kThreads / kRowLanes;

__device__ inline float inverse_rms(const float* x, int64_t N, float eps) {
  return 1.0f / sqrtf(dot_lanes(x, x, N) / static_cast<float>(N) + eps);
}

__device__ inline int64_t row_of_thread() {
  return blockIdx.x * static_cast<int64_t>(kRowsPerBlock) + threadIdx.x / kRowLanes;
}

__global__ void rms_norm_fwd_kernel(const RmsNormFwd p) {
  const int64_t r = row_of_thread();
  if (r >= p.num_rows) return;
  const float* x = p.x + r * p.x_stride;
  float* y = p.y + r * p.y_stride;
  const float rho = inverse_rms(x, p.N, p.eps);
  for (int64_t i = row_lane(); i < p.N; i += kRowLanes) {
    const float normed = x[i] * rho;
    y[i] = p.w != nullptr ? normed * p.w[i] : normed;
  }
}

__global__ void rms_norm_rho_kernel(const RmsNormBwd p, float* rho) {
  const int64_t r = row_of_thread();
  if (r >= p.num_rows) return;
  const float value = inverse_rms(p.x + r * p.x_stride, p.N, p.eps);
  if (row_lane() == 0) rho[r] = value;
}

__global__ void rms_norm_dw_kernel(const RmsNormBwd p, const float* rho) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= p.N) return;
  float acc = p.dw[i];
  for (int64_t r = 0; r < p.num_rows; ++r) {
    acc = fmaf(p.dy[r * p.dy_stride + i], p.x[r * p.x_stride + i] * rho[r], acc);
  }
  p.dw[i] = acc;
}

__global__ void rms_norm_dx_kernel(const RmsNormBwd p, const float* rhos) {
  const int64_t r = row_of_thread();
  if (r >= p.num_rows) return;
  const float* x = p.x + r * p.x_stride;
  const float* dy = p.dy + r * p.dy_stride;
  float* dx = p.dx + r * p.dx_stride;
  const float rho = rhos[r];
  const auto weighted = [&](int64_t i) { return p.w != nullptr ? p.w[i] * dy[i] : dy[i]; };
  const float sum = dot_lanes_of(
      weighted, [&](int64_t i) { return x[i]; }, p.N);
  const float pull = rho * rho * rho * sum / static_cast<float>(p.N);
  for (int64_t i = row_lane(); i < p.N; i += kRowLanes) {
    float d = fmaf(-x[i], pull, rho * weighted(i));
    if (p.accumulate) d = dx[i] + d;
    dx[i] = d;
  }
}

}  // namespace

void rms_norm_fwd(Device& device, const RmsNormFwd& p) {
  if (p.num_rows == 0) return;
  FATHOM_LAUNCH(device, rms_norm_fwd_kernel, blocks_for(p.num_rows, kRowsPerBlock), kThreads, 0, p);
}

void rms_norm_bwd(Device& device, const RmsNormBwd& p) {
  if (p.num_rows == 0) return;
  const Scratch<float> rho(device, p.num_rows);
  const unsigned row_blocks = blocks_for(p.num_rows, kRowsPerBlock);
  FATHOM_LAUNCH(device, rms_norm_rho_kernel, row_blocks, kThreads, 0, p, rho.get());
  if (p.dw != nullptr) {  // before dx, which may overwrite dy
    FATHOM_LAUNCH(device, rms_norm_dw_kernel, blocks_for(p.N, kThreads), kThreads, 0, p, rho.get());
  }
  FATHOM_LAUNCH(device, rms_norm_dx_kernel, row_blocks, kThreads, 0, p, rho.get());
}

}  // namespace fathom::cuda
