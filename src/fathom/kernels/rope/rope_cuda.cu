// One thread per angle of the table, one per pair of channels of the rotation.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/rope/rope_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void rope_table_kernel(const int64_t* positions, const float* frequencies, int64_t n,
                                  int64_t num_frequencies, float* cos, float* sin) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const float position = static_cast<float>(positions[i / num_frequencies]);
  double s, c;
  sin_cos_of(static_cast<double>(position * frequencies[i % num_frequencies]), &s, &c);
  cos[i] = static_cast<float>(c);
  sin[i] = static_cast<float>(s);
}

__global__ void rope_apply_kernel(const RopeApply p, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const int64_t pairs = p.rope_dim / 2;
  const int64_t pair = i % pairs, head = i / pairs % p.num_heads, row = i / pairs / p.num_heads;
  float* x = p.x + row * p.row_stride + head * p.head_stride + (p.head_dim - p.rope_dim) + 2 * pair;
  const float cos = p.cos[row * pairs + pair], sin = p.sin[row * pairs + pair];
  const float x0 = x[0], x1 = x[1];
  if (p.inverse) {
    x[0] = fmaf(x0, cos, x1 * sin);
    x[1] = fmaf(x0, -sin, x1 * cos);
  } else {
    x[0] = fmaf(x0, cos, -(x1 * sin));
    x[1] = fmaf(x0, sin, x1 * cos);
  }
}

}  // namespace

void rope_table(Device& device, const int64_t* positions, int64_t num_positions,
                const float* frequencies, int64_t num_frequencies, float* cos, float* sin) {
  const int64_t n = num_positions * num_frequencies;
  if (n == 0) return;
  FATHOM_LAUNCH(device, rope_table_kernel, blocks_for(n, kThreads), kThreads, 0, positions,
                frequencies, n, num_frequencies, cos, sin);
}

void rope_apply(Device& device, const RopeApply& p) {
  const int64_t n = p.num_rows * p.num_heads * (p.rope_dim / 2);
  if (n == 0) return;
  FATHOM_LAUNCH(device, rope_apply_kernel, blocks_for(n, kThreads), kThreads, 0, p, n);
}

}  // namespace fathom::cuda
