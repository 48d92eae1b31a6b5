#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <mutex>

#include "fathom/base/cuda_check.h"
#include "fathom/base/device.h"
#include "fathom/base/error.h"

namespace fathom {
namespace {

/// Host memory that is written from pageable memory up to this size is staged by the driver before
/// the call returns; more is waited for.
constexpr size_t kStagedBytes = 64 * 1024;

[[noreturn]] void throw_fault(const DeviceFault& f) {
  switch (f.kind) {
    case DeviceFaultKind::kRouterScore:
      throw UserError(str_cat(
          "router: the score of an expert is not a finite number\n  at: token ", f.row, ", expert ",
          f.column,
          "\n  fix: look for the first layer whose output is not finite; a checkpoint with NaN "
          "weights or a diverged training run gives this"));
    case DeviceFaultKind::kRouterReplay:
      throw UserError(str_cat("router: the routing replay names expert ", f.value,
                              ", which the layer does not have\n  at: token ", f.row, ", slot ",
                              f.column));
    case DeviceFaultKind::kRouterTable:
      throw UserError(str_cat("router: the hash table (tid2eid) names expert ", f.value,
                              ", which the layer does not have\n  at: token ", f.row, ", slot ",
                              f.column));
    case DeviceFaultKind::kRouterToken:
      throw UserError(
          str_cat("router: token id ", f.value, " at position ", f.row, " is negative"));
    case DeviceFaultKind::kIndexerScore:
      throw UserError(str_cat("query ", f.row, ": indexer: the score of entry ", f.column,
                              " is NaN; look for NaN or infinity in the indexer's weights or in "
                              "its input"));
    case DeviceFaultKind::kEmbeddingToken:
      throw UserError(
          str_cat("embedding: token id ", f.value, " at position ", f.row, " is negative"));
    case DeviceFaultKind::kTargetToken:
      throw UserError(str_cat("log_prob: token id ", f.value, " at row ", f.row,
                              " is outside the vocabulary of ", f.column, " tokens"));
    case DeviceFaultKind::kWeight:
      throw UserError(str_cat("element [", f.row, ", ", f.column,
                              "] of a weight is not finite and cannot be quantised to FP8"));
    case DeviceFaultKind::kNone:
      break;
  }
  throw InternalError("an unknown fault was reported by a kernel");
}

class CudaDevice : public Device {
 public:
  explicit CudaDevice(const DeviceOptions& options) : options_(options) {
    FATHOM_CUDA_CHECK(cudaSetDevice(0));
    cudaDeviceProp properties;
    FATHOM_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    name_ = properties.name;
    FATHOM_CHECK(properties.major >= 9, "--device cuda: ", name_, " has compute capability ",
                 properties.major, ".", properties.minor, ", this program needs 9.0 or later");
    cudaMemPool_t pool;
    FATHOM_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, 0));
    uint64_t keep_all = UINT64_MAX;
    FATHOM_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all));
    FATHOM_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    FATHOM_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&fault_), sizeof(DeviceFault)));
    FATHOM_CUDA_CHECK(cudaMemset(fault_, 0, sizeof(DeviceFault)));
  }

  ~CudaDevice() override {
    cudaStreamSynchronize(stream_);
    cudaFree(fault_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return name_; }

  void* allocate(size_t num_bytes) override {
    void* memory = nullptr;
    const size_t size = num_bytes == 0 ? 1 : num_bytes;
    const cudaError_t error = cudaMallocAsync(&memory, size, stream_);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      const MemoryUse use = memory_use();
      throw UserError(str_cat("out of memory on ", name_, ": ", num_bytes, " bytes are needed, ",
                              use.free_bytes, " of ", use.total_bytes, " are free and ",
                              use.used_bytes, " in use by this program\n",
                              "  fix: a smaller batch, --max-tokens-per-gpu, or a smaller budget "
                              "for states (--sglang-mem-fraction-static)"));
    }
    FATHOM_CUDA_CHECK(error);
    const std::lock_guard<std::mutex> lock(mutex_);
    sizes_[memory] = size;
    used_ += static_cast<int64_t>(size);
    if (used_ > peak_) peak_ = used_;
    return memory;
  }

  void release(void* memory) noexcept override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto it = sizes_.find(memory);
      used_ -= static_cast<int64_t>(it->second);
      sizes_.erase(it);
    }
    cudaFreeAsync(memory, stream_);
  }

  void upload(void* to, const void* from_host, size_t num_bytes) override {
    FATHOM_CUDA_CHECK(cudaMemcpyAsync(to, from_host, num_bytes, cudaMemcpyHostToDevice, stream_));
    if (num_bytes > kStagedBytes) FATHOM_CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  void download(void* to_host, const void* from, size_t num_bytes) override {
    FATHOM_CUDA_CHECK(cudaMemcpyAsync(to_host, from, num_bytes, cudaMemcpyDeviceToHost, stream_));
    synchronize();
  }

  void copy(void* to, const void* from, size_t num_bytes) override {
    FATHOM_CUDA_CHECK(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToDevice, stream_));
  }

  void clear(void* to, size_t num_bytes) override {
    FATHOM_CUDA_CHECK(cudaMemsetAsync(to, 0, num_bytes, stream_));
  }

  void synchronize() override {
    DeviceFault fault;
    FATHOM_CUDA_CHECK(
        cudaMemcpyAsync(&fault, fault_, sizeof fault, cudaMemcpyDeviceToHost, stream_));
    FATHOM_CUDA_CHECK(cudaStreamSynchronize(stream_));
    if (fault.kind == DeviceFaultKind::kNone) return;
    FATHOM_CUDA_CHECK(cudaMemsetAsync(fault_, 0, sizeof(DeviceFault), stream_));
    throw_fault(fault);
  }

  void* stream() const override { return stream_; }
  DeviceFault* fault() const override { return fault_; }

  void after_launch(const char* kernel) override {
    const cudaError_t error = cudaGetLastError();
    FATHOM_ASSERT(error == cudaSuccess, "kernel ", kernel, ": ", cudaGetErrorName(error), ": ",
                  cudaGetErrorString(error));
    if (!options_.is_synchronous) return;
    with_context(kernel, [&] { synchronize(); });
  }

  MemoryUse memory_use() const override {
    MemoryUse use;
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    use.free_bytes = static_cast<int64_t>(free);
    use.total_bytes = static_cast<int64_t>(total);
    const std::lock_guard<std::mutex> lock(mutex_);
    use.used_bytes = used_;
    use.peak_bytes = peak_;
    return use;
  }

 private:
  DeviceOptions options_;
  std::string name_;
  cudaStream_t stream_ = nullptr;
  DeviceFault* fault_ = nullptr;
  mutable std::mutex mutex_;
  std::map<void*, size_t> sizes_;
  int64_t used_ = 0, peak_ = 0;
};

}  // namespace

bool has_cuda_build() { return true; }

std::unique_ptr<Device> open_cuda_device(const DeviceOptions& options) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  FATHOM_CHECK(error == cudaSuccess && count > 0, "--device cuda: no CUDA device can be used here",
               error == cudaSuccess ? "" : str_cat(" (", cudaGetErrorString(error), ")"),
               "\n  fix: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES");
  return std::make_unique<CudaDevice>(options);
}

}  // namespace fathom
