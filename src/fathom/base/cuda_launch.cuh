// For _cuda.cu files: launching on a device's stream, memory for one launch, reporting faults.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "fathom/base/cuda_check.h"
#include "fathom/base/device.h"

namespace fathom::cuda {

inline cudaStream_t stream_of(const Device& device) {
  return static_cast<cudaStream_t>(device.stream());
}

/// Blocks for n items, `per_block` of them each; at most what a grid's first dimension takes.
inline unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

/// Memory for n values of T that lives until the work so far is done.
template <typename T>
class Scratch {
 public:
  Scratch(Device& device, int64_t n)
      : device_(device),
        memory_(static_cast<T*>(device.allocate(static_cast<size_t>(n) * sizeof(T)))) {}
  /// A copy of `values`.
  Scratch(Device& device, const std::vector<T>& values)
      : Scratch(device, static_cast<int64_t>(values.size())) {
    if (!values.empty()) device.upload(memory_, values.data(), values.size() * sizeof(T));
  }
  ~Scratch() { device_.release(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return memory_; }

 private:
  Device& device_;
  T* memory_;
};

/// The first fault of all kernels since the last wait is kept.
__device__ inline void report_fault(DeviceFault* fault, DeviceFaultKind kind, int64_t row,
                                    int64_t column, int32_t value = 0) {
  if (atomicCAS(reinterpret_cast<int*>(&fault->kind), 0, static_cast<int>(kind)) == 0) {
    fault->row = row;
    fault->column = column;
    fault->value = value;
  }
}

}  // namespace fathom::cuda

/// kernel<<<grid, block, shared>>>(...) on the device's stream, checked.
#define FATHOM_LAUNCH(device, kernel, grid, block, shared, ...)                            \
  do {                                                                                     \
    kernel<<<(grid), (block), (shared), ::fathom::cuda::stream_of(device)>>>(__VA_ARGS__); \
    (device).after_launch(#kernel);                                                        \
  } while (false)
