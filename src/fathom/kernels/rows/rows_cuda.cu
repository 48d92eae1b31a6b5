// One thread per element; where rows may be named twice, one per column, which walks the rows.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/rows/rows_cuda.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void gather_rows_kernel(const float* x, const int64_t* rows, int64_t n, int64_t width,
                                   float* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < n) out[i] = x[rows[i / width] * width + i % width];
}

__global__ void add_rows_kernel(const float* in, const int64_t* rows, int64_t R, int64_t width,
                                float* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= width) return;
  for (int64_t r = 0; r < R; ++r) out[rows[r] * width + i] += in[r * width + i];
}

__global__ void add_to_streams_kernel(int64_t n, int64_t M, int64_t D, const float* e,
                                      float* streams) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < n) streams[i] += e[i / (M * D) * D + i % D];
}

__global__ void sum_streams_kernel(int64_t n, int64_t M, int64_t D, const float* d, float* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  float sum = 0.0f;
  for (int64_t j = 0; j < M; ++j) sum += d[(i / D * M + j) * D + i % D];
  out[i] = sum;
}

__global__ void scale_elements_kernel(int64_t n, float factor, float* x) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < n) x[i] *= factor;
}

}  // namespace

void gather_rows(Device& device, const float* x, const int64_t* rows, int64_t R, int64_t width,
                 float* out) {
  if (R * width == 0) return;
  FATHOM_LAUNCH(device, gather_rows_kernel, blocks_for(R * width, kThreads), kThreads, 0, x, rows,
                R * width, width, out);
}

void add_rows(Device& device, const float* in, const int64_t* rows, int64_t R, int64_t width,
              float* out) {
  if (R * width == 0) return;
  FATHOM_LAUNCH(device, add_rows_kernel, blocks_for(width, kThreads), kThreads, 0, in, rows, R,
                width, out);
}

void add_to_streams(Device& device, int64_t T, int64_t M, int64_t D, const float* e,
                    float* streams) {
  if (T == 0) return;
  FATHOM_LAUNCH(device, add_to_streams_kernel, blocks_for(T * M * D, kThreads), kThreads, 0,
                T * M * D, M, D, e, streams);
}

void sum_streams(Device& device, int64_t T, int64_t M, int64_t D, const float* d, float* out) {
  if (T == 0) return;
  FATHOM_LAUNCH(device, sum_streams_kernel, blocks_for(T * D, kThreads), kThreads, 0, T * D, M, D,
                d, out);
}

void scale_elements(Device& device, int64_t n, float factor, float* x) {
  if (n == 0) return;
  FATHOM_LAUNCH(device, scale_elements_kernel, blocks_for(n, kThreads), kThreads, 0, n, factor, x);
}

}  // namespace fathom::cuda
