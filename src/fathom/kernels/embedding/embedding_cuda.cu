// One thread per element of the output; of the gradient one per column, which walks the tokens in
// packed order.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/embedding/embedding_cuda.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kColumnThreads = 32;

__global__ void embedding_fwd_kernel(const float* table, const int32_t* ids, int64_t n, int64_t D,
                                     int64_t copies, float* out, DeviceFault* fault) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n) return;
  const int64_t t = i / (copies * D), id = ids[t];
  if (id < 0) return report_fault(fault, DeviceFaultKind::kEmbeddingToken, t, 0, ids[t]);
  out[i] = table[id * D + i % D];
}

__global__ void embedding_bwd_kernel(const float* dout, const int32_t* ids, int64_t T, int64_t D,
                                     int64_t copies, float* dtable, DeviceFault* fault) {
  const int64_t d = blockIdx.x * static_cast<int64_t>(kColumnThreads) + threadIdx.x;
  if (d >= D) return;
  for (int64_t t = 0; t < T; ++t) {
    if (ids[t] < 0) return report_fault(fault, DeviceFaultKind::kEmbeddingToken, t, 0, ids[t]);
    const float* g = dout + t * copies * D + d;
    float sum = g[0];
    for (int64_t c = 1; c < copies; ++c) sum += g[c * D];
    float* at = dtable + static_cast<int64_t>(ids[t]) * D + d;
    *at = *at + sum;
  }
}

}  // namespace

void embedding_fwd(Device& device, const float* table, const int32_t* ids, int64_t T, int64_t D,
                   int64_t copies, float* out) {
  const int64_t n = T * copies * D;
  if (n == 0) return;
  FATHOM_LAUNCH(device, embedding_fwd_kernel, blocks_for(n, kThreads), kThreads, 0, table, ids, n,
                D, copies, out, device.fault());
}

void embedding_bwd(Device& device, const float* dout, const int32_t* ids, int64_t T, int64_t D,
                   int64_t copies, float* dtable) {
  if (T * D == 0) return;
  FATHOM_LAUNCH(device, embedding_bwd_kernel, blocks_for(D, kColumnThreads), kColumnThreads, 0,
                dout, ids, T, D, copies, dtable, device.fault());
}

}  // namespace fathom::cuda
