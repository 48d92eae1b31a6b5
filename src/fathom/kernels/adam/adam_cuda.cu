// One thread per element; for the norm one per block of 4,096 elements, then one that adds blocks.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/adam/adam_cuda.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kNormThreads = 64;
constexpr int64_t kNormBlock = 4096;

__global__ void adam_update_kernel(const AdamStep s, int64_t n, const float* grad, float* w,
                                   float* m, float* v) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const float g = grad[i] * s.grad_scale;
  const float first = fmaf(s.beta1, m[i], (1.0f - s.beta1) * g);
  const float second = fmaf(s.beta2, v[i], ((1.0f - s.beta2) * g) * g);
  m[i] = first;
  v[i] = second;
  const float mean = first / s.bias_correction1;
  const float deviation = sqrtf(second / s.bias_correction2) + s.eps;
  const float step = fmaf(s.weight_decay, w[i], mean / deviation);
  w[i] = fmaf(-s.lr, step, w[i]);
}

__global__ void norm_blocks_kernel(const float* values, int64_t n, int64_t num_blocks,
                                   double* blocks) {
  const int64_t b = blockIdx.x * static_cast<int64_t>(kNormThreads) + threadIdx.x;
  if (b >= num_blocks) return;
  const int64_t end = (b + 1) * kNormBlock < n ? (b + 1) * kNormBlock : n;
  double sum = 0.0;
  for (int64_t i = b * kNormBlock; i < end; ++i) {
    const double x = static_cast<double>(values[i]);
    sum = sum + x * x;
  }
  blocks[b] = sum;
}

__global__ void add_norm_blocks_kernel(const double* blocks, int64_t num_blocks, double* total) {
  double sum = 0.0;
  for (int64_t b = 0; b < num_blocks; ++b) sum = sum + blocks[b];
  *total = sum;
}

}  // namespace

void adam_update(Device& device, const AdamStep& s, int64_t n, const float* grad, float* w,
                 float* m, float* v) {
  if (n == 0) return;
  FATHOM_LAUNCH(device, adam_update_kernel, blocks_for(n, kThreads), kThreads, 0, s, n, grad, w, m,
                v);
}

std::vector<double> squared_norms(Device& device, const std::vector<NormTensor>& tensors) {
  const Scratch<double> totals(device, static_cast<int64_t>(tensors.size()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const NormTensor& t = tensors[i];
    const int64_t num_blocks = (t.n + kNormBlock - 1) / kNormBlock;
    const Scratch<double> blocks(device, num_blocks);
    if (num_blocks > 0) {
      FATHOM_LAUNCH(device, norm_blocks_kernel, blocks_for(num_blocks, kNormThreads), kNormThreads,
                    0, t.values, t.n, num_blocks, blocks.get());
    }
    FATHOM_LAUNCH(device, add_norm_blocks_kernel, 1, 1, 0, blocks.get(), num_blocks,
                  totals.get() + i);
  }
  std::vector<double> norms(tensors.size());
  if (!norms.empty()) device.download(norms.data(), totals.get(), norms.size() * sizeof(double));
  return norms;
}

}  // namespace fathom::cuda
