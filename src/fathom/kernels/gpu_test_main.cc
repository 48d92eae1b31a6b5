// main() of the kernel tests on a CUDA device. The tests hand kernels the addresses of their vectors
// and locals; so that a kernel can follow them, all memory of the program from here on, and the
// stack that the tests run on, comes from one region of page-locked host memory, which has the same
// addresses on the device. Exits with 77 (skipped) where there is no device.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"

namespace {

constexpr size_t kRegionBytes = size_t{2} << 30, kStackBytes = size_t{256} << 20;
constexpr int kNumClasses = 40;

/// Blocks of powers of two, kept for reuse in a list per size.
class Region {
 public:
  void open(char* memory, size_t num_bytes) {
    next_ = begin_ = memory;
    end_ = memory + num_bytes;
  }
  bool owns(const void* p) const { return p >= begin_ && p < end_; }
  bool is_open() const { return begin_ != nullptr; }

  void* take(size_t num_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int size_class = class_of(num_bytes + kHeader);
    char* block = static_cast<char*>(free_[size_class]);
    if (block != nullptr) {
      free_[size_class] = *reinterpret_cast<void**>(block);
    } else {
      block = next_;
      next_ += size_t{1} << size_class;
      if (next_ > end_) std::abort();
    }
    *reinterpret_cast<int*>(block) = size_class;
    return block + kHeader;
  }
  void give_back(void* p) {
    const std::lock_guard<std::mutex> lock(mutex_);
    char* block = static_cast<char*>(p) - kHeader;
    const int size_class = *reinterpret_cast<int*>(block);
    *reinterpret_cast<void**>(block) = free_[size_class];
    free_[size_class] = block;
  }

 private:
  static constexpr size_t kHeader = 64;
  static int class_of(size_t num_bytes) {
    int size_class = 7;
    while ((size_t{1} << size_class) < num_bytes) ++size_class;
    return size_class;
  }
  std::mutex mutex_;
  char *begin_ = nullptr, *end_ = nullptr, *next_ = nullptr;
  void* free_[kNumClasses] = {};
};

Region region;
std::unique_ptr<fathom::Device> device;

void* take(size_t num_bytes) {
  void* p = region.is_open() ? region.take(num_bytes) : std::malloc(num_bytes == 0 ? 1 : num_bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void give_back(void* p) {
  if (region.owns(p)) return region.give_back(p);
  std::free(p);
}

void* run_tests(void* result) {
  *static_cast<int*>(result) = RUN_ALL_TESTS();
  return nullptr;
}

}  // namespace

void* operator new(size_t n) { return take(n); }
void* operator new[](size_t n) { return take(n); }
void operator delete(void* p) noexcept { give_back(p); }
void operator delete[](void* p) noexcept { give_back(p); }
void operator delete(void* p, size_t) noexcept { give_back(p); }
void operator delete[](void* p, size_t) noexcept { give_back(p); }

fathom::Device* fathom::test_device() { return device.get(); }

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    device = fathom::open_cuda_device({.is_synchronous = true});
  } catch (const fathom::UserError& e) {
    std::printf("skipped: %s\n", e.what());
    return 77;
  }
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, kRegionBytes, cudaHostAllocMapped) != cudaSuccess) return 1;
  region.open(static_cast<char*>(memory) + kStackBytes, kRegionBytes - kStackBytes);
  std::printf("on %s\n", device->name().c_str());
  int result = 1;
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  if (pthread_attr_setstack(&attributes, memory, kStackBytes) != 0 ||
      pthread_create(&thread, &attributes, run_tests, &result) != 0) {
    return 1;
  }
  pthread_join(thread, nullptr);
  std::fflush(nullptr);
  std::_Exit(result);  // memory of the region may still be in use by static objects
}
