// Rounding: one thread per element, per FP8 block of a row, or per row of the Hadamard rotation.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/quant/entry_device.cuh"
#include "fathom/kernels/quant/quant_cuda.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kRowThreads = 64;
constexpr int64_t kWeightBlock = 128;
constexpr float kWeightAmaxFloor = 1e-10f;

__global__ void round_bf16_kernel(const float* x, int64_t n, float* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < n) out[i] = round_bf16_of(x[i]);
}

/// 16 threads a block of a row.
__global__ void simulate_fp8_rows_kernel(const Fp8Rows p, int64_t blocks_per_row) {
  const int64_t item =
      blockIdx.x * static_cast<int64_t>(kThreads / kRowLanes) + threadIdx.x / kRowLanes;
  if (item >= p.num_rows * blocks_per_row) return;
  const int64_t row = item / blocks_per_row, begin = item % blocks_per_row * p.block;
  const int64_t n = p.n - begin < p.block ? p.n - begin : p.block;
  const float* x = p.x + row * p.x_stride + begin;
  float* out = p.out + row * p.out_stride + begin;
  float largest = 0.0f;
  for (int64_t i = row_lane(); i < n; i += kRowLanes) {
    largest = max_of(fabsf(x[i]), largest);  // a NaN does not count
  }
  const float amax = max_lanes(largest);
  const float scale = power_scale(amax > kFp8RowAmaxFloor ? amax : kFp8RowAmaxFloor);
  for (int64_t i = row_lane(); i < n; i += kRowLanes) out[i] = round_e4m3(x[i] / scale) * scale;
}

/// A block of threads a row: butterflies in shared memory.
__global__ void hadamard_rows_kernel(int64_t n, float scale, float* x) {
  extern __shared__ float row[];
  float* const memory = x + blockIdx.x * n;
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) row[i] = memory[i];
  for (int64_t h = 1; h < n; h *= 2) {
    __syncthreads();
    for (int64_t pair = threadIdx.x; pair < n / 2; pair += kRowThreads) {
      const int64_t j = pair / h * 2 * h + pair % h;
      const float a = row[j], b = row[j + h];
      row[j] = a + b;
      row[j + h] = a - b;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) memory[i] = round_bf16_of(row[i] * scale);
}

__global__ void simulate_fp8_blocks_kernel(const float* w, int64_t rows, int64_t cols, float* out,
                                           DeviceFault* fault) {
  __shared__ float largest[kThreads];
  const int64_t row = blockIdx.y * kWeightBlock, col = blockIdx.x * kWeightBlock;
  const int64_t height = rows - row < kWeightBlock ? rows - row : kWeightBlock;
  const int64_t width = cols - col < kWeightBlock ? cols - col : kWeightBlock;
  float amax = kWeightAmaxFloor;
  for (int64_t i = threadIdx.x; i < height * width; i += kThreads) {
    const int64_t r = row + i / width, c = col + i % width;
    const float a = fabsf(w[r * cols + c]);
    if (!(a < __int_as_float(0x7F800000))) report_fault(fault, DeviceFaultKind::kWeight, r, c);
    amax = max_of(a, amax);
  }
  largest[threadIdx.x] = amax;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (static_cast<int>(threadIdx.x) < step) {
      largest[threadIdx.x] = max_of(largest[threadIdx.x + step], largest[threadIdx.x]);
    }
    __syncthreads();
  }
  const float scale = power_scale(largest[0]);
  for (int64_t i = threadIdx.x; i < height * width; i += kThreads) {
    const int64_t at = (row + i / width) * cols + col + i % width;
    out[at] = round_e4m3(w[at] / scale) * scale;
  }
}

}  // namespace

void round_bf16(Device& device, const float* x, int64_t n, float* out) {
  if (n == 0) return;
  FATHOM_LAUNCH(device, round_bf16_kernel, blocks_for(n, kThreads), kThreads, 0, x, n, out);
}

void simulate_fp8_rows(Device& device, const Fp8Rows& p) {
  const int64_t blocks_per_row = (p.n + p.block - 1) / p.block;
  if (p.num_rows * blocks_per_row == 0) return;
  FATHOM_LAUNCH(device, simulate_fp8_rows_kernel,
                blocks_for(p.num_rows * blocks_per_row, kThreads / kRowLanes), kThreads, 0, p,
                blocks_per_row);
}

void hadamard_rows_bf16(Device& device, int64_t num_rows, int64_t n, float scale, float* x) {
  if (num_rows == 0) return;
  FATHOM_LAUNCH(device, hadamard_rows_kernel, static_cast<unsigned>(num_rows), kRowThreads,
                static_cast<size_t>(n) * sizeof(float), n, scale, x);
}

void simulate_fp8_blocks(Device& device, const float* w, int64_t rows, int64_t cols, float* out) {
  if (rows * cols == 0) return;
  const dim3 grid(blocks_for(cols, kWeightBlock), blocks_for(rows, kWeightBlock));
  FATHOM_LAUNCH(device, simulate_fp8_blocks_kernel, grid, kThreads, 0, w, rows, cols, out,
                device.fault());
}

}  // namespace fathom::cuda
