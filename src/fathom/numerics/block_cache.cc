#include "fathom/numerics/block_cache.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <new>
#include <vector>

namespace fathom {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kLargestKept = size_t{1} << 20, kMostKept = size_t{32} << 20;
#ifdef __SANITIZE_ADDRESS__
constexpr bool kKeepsBlocks = false;
#else
constexpr bool kKeepsBlocks = true;
#endif

// Four sizes from each power of two to the next: at most a fifth of a block is not used.
constexpr size_t kSmallest = 256, kSteps = 4;

size_t size_class(size_t num_bytes) {
  if (num_bytes <= kSmallest) return 0;
  const size_t last = num_bytes - 1;
  const auto octave = static_cast<size_t>(std::bit_width(last)) - 1;  // 2^octave <= last
  const size_t step = (last >> (octave - 2)) & (kSteps - 1);
  return (octave - 8) * kSteps + step + 1;
}

size_t class_bytes(size_t index) {
  if (index == 0) return kSmallest;
  const size_t octave = (index - 1) / kSteps + 8, step = (index - 1) % kSteps;
  return (kSteps + step + 1) << (octave - 2);
}

constexpr size_t kNumClasses = (20 - 8) * kSteps + 1;  // up to 1 MiB

void* allocate(size_t num_bytes) {
  void* block = std::aligned_alloc(kAlignment, num_bytes);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

// Outlives the cache of its thread: a tensor may be freed while the thread ends.
thread_local bool thread_ends = false;

class BlockCache {
 public:
  ~BlockCache() {
    thread_ends = true;
    for (const auto& blocks : free_) {
      for (void* block : blocks) std::free(block);
    }
  }

  void* take(size_t index) {
    std::vector<void*>& blocks = free_[index];
    if (blocks.empty()) return allocate(class_bytes(index));
    void* block = blocks.back();
    blocks.pop_back();
    num_bytes_ -= class_bytes(index);
    return block;
  }

  void give_back(size_t index, void* block) noexcept {
    if (num_bytes_ + class_bytes(index) > kMostKept) return std::free(block);
    try {
      free_[index].push_back(block);
      num_bytes_ += class_bytes(index);
    } catch (const std::bad_alloc&) {
      std::free(block);
    }
  }

 private:
  std::array<std::vector<void*>, kNumClasses> free_;
  size_t num_bytes_ = 0;
};

thread_local BlockCache thread_cache;

}  // namespace

std::shared_ptr<void> acquire_block(size_t num_bytes) {
  if (!kKeepsBlocks || num_bytes > kLargestKept || thread_ends) {
    const size_t rounded = (std::max<size_t>(num_bytes, 1) + kAlignment - 1) / kAlignment;
    return {allocate(rounded * kAlignment), std::free};
  }
  const size_t index = size_class(num_bytes);
  return {thread_cache.take(index), [index](void* block) {
            if (thread_ends) return std::free(block);
            thread_cache.give_back(index, block);
          }};
}

}  // namespace fathom
