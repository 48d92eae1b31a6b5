// An accelerator: its memory, and the stream that all work of a context goes through in order.
// There is one implementation, on CUDA (device_cuda.cc); a build without a toolkit has none
// (device_none.cc). Code outside kernels uses the functions at the end, which take null for the
// host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace fathom {

/// What a kernel found wrong with its input. Told to the host when it next waits for the device.
enum class DeviceFaultKind : int32_t {
  kNone,
  kRouterScore,     // row: token; column: expert
  kRouterReplay,    // row: token; column: slot; value: expert
  kRouterTable,     // the same
  kRouterToken,     // row: token; value: its id
  kIndexerScore,    // row: query; column: entry
  kEmbeddingToken,  // row: token; value: its id
  kTargetToken,     // row; column: size of the vocabulary; value: the id
  kWeight,          // row, column: of a matrix that is quantised to FP8
};
struct DeviceFault {
  DeviceFaultKind kind;
  int32_t value;
  int64_t row, column;
};

struct DeviceOptions {
  /// Waits after every kernel and tells its fault at once. For tests and for finding faults.
  bool is_synchronous = false;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // "NVIDIA H100 80GB HBM3"
  /// Bytes, 256-byte aligned, contents undefined; ordered by the stream, as is their release.
  /// Errors: UserError when there is not enough memory.
  virtual void* allocate(size_t num_bytes) = 0;
  virtual void release(void* memory) noexcept = 0;

  /// The host memory may be changed as soon as the call returns.
  virtual void upload(void* to, const void* from_host, size_t num_bytes) = 0;
  /// Waits until the bytes are there, and with them for all work so far.
  /// Errors: UserError for a fault that a kernel reported.
  virtual void download(void* to_host, const void* from, size_t num_bytes) = 0;
  virtual void copy(void* to, const void* from, size_t num_bytes) = 0;
  virtual void clear(void* to, size_t num_bytes) = 0;
  virtual void synchronize() = 0;  // errors as in download()

  /// For kernels: the cudaStream_t, and where they report a fault.
  virtual void* stream() const = 0;
  virtual DeviceFault* fault() const = 0;
  /// Called by launchers after each kernel. Errors: InternalError when the launch failed.
  virtual void after_launch(const char* kernel) = 0;

  struct MemoryUse {
    int64_t free_bytes = 0, total_bytes = 0;  // of the card
    int64_t used_bytes = 0, peak_bytes = 0;   // of allocate()
  };
  virtual MemoryUse memory_use() const = 0;
};

bool has_cuda_build();
/// The first CUDA device that this process may use. Must outlive all memory on it.
/// Errors: UserError when the program was built without CUDA, or no device can be used.
std::unique_ptr<Device> open_cuda_device(const DeviceOptions& options = {});

// Memory of a device, or of the host when `device` is null.
void copy_memory(Device* device, void* to, const void* from, size_t num_bytes);
void clear_memory(Device* device, void* to, size_t num_bytes);
void upload_memory(Device* device, void* to, const void* from_host, size_t num_bytes);
void download_memory(Device* device, void* to_host, const void* from, size_t num_bytes);

}  // namespace fathom
