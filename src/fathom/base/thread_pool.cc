#include "fathom/base/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "fathom/base/error.h"

namespace fathom {
namespace {

// A worker spins this many pauses before it sleeps: kernels follow one another within microseconds.
constexpr int kSpinPauses = 2000;

thread_local bool inside_loop = false;

}  // namespace

struct ThreadPool::Impl {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<bool> stopping{false};
  std::atomic<int> sleeping{0};

  // Number of the loop, whether it is open, and how many workers are inside, in one word: a worker
  // that comes late finds the loop closed and is not waited for.
  static constexpr uint64_t kInsideMask = 0xFFFF, kOpen = 1 << 16;
  static constexpr int kNumberShift = 17;
  std::atomic<uint64_t> word{0};

  // The loop in progress; changed only while it is closed and nobody is inside.
  RangeFn call = nullptr;
  void* fn = nullptr;
  int64_t count = 0;
  int64_t grain = 1;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  static uint64_t number_of(uint64_t value) { return value >> kNumberShift; }

  void take_ranges() {
    inside_loop = true;
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) break;
      try {
        call(fn, begin, std::min(begin + grain, count));
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(count, std::memory_order_relaxed);
      }
    }
    inside_loop = false;
  }

  /// Waits for a loop after `seen`. @return its word.
  uint64_t wait_for_loop(uint64_t seen) {
    uint64_t value = word.load(std::memory_order_acquire);
    for (int i = 0; i < kSpinPauses && number_of(value) == seen; ++i) {
      _mm_pause();
      value = word.load(std::memory_order_acquire);
    }
    if (number_of(value) == seen) {
      std::unique_lock lock(mutex);
      sleeping.fetch_add(1);
      wake.wait(lock, [&] { return number_of(word.load()) != seen || stopping.load(); });
      sleeping.fetch_sub(1);
      value = word.load(std::memory_order_acquire);
    }
    return value;
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      uint64_t value = wait_for_loop(seen);
      if (stopping.load()) return;
      while ((value & kOpen) != 0 &&
             !word.compare_exchange_weak(value, value + 1, std::memory_order_acq_rel)) {
      }
      seen = number_of(value);
      if ((value & kOpen) == 0) continue;
      take_ranges();
      word.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>()) {
  FATHOM_CHECK(num_threads >= 1, "threads: must be at least 1, got ", num_threads);
  for (int i = 1; i < num_threads; ++i) impl_->workers.emplace_back([this] { impl_->work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping.store(true);
  }
  impl_->wake.notify_all();
  for (auto& worker : impl_->workers) worker.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::run(int64_t count, int64_t grain, RangeFn call, void* fn) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (impl_->workers.empty() || inside_loop || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      call(fn, begin, std::min(begin + grain, count));
    }
    return;
  }
  Impl& p = *impl_;
  p.call = call;
  p.fn = fn;
  p.count = count;
  p.grain = grain;
  p.error = nullptr;
  p.next.store(0, std::memory_order_relaxed);
  {
    // A worker on its way to sleep re-checks the number under this mutex.
    std::lock_guard lock(p.mutex);
    const uint64_t number = Impl::number_of(p.word.load()) + 1;
    p.word.store(number << Impl::kNumberShift | Impl::kOpen, std::memory_order_release);
    if (p.sleeping.load() > 0) p.wake.notify_all();
  }
  p.take_ranges();
  p.word.fetch_sub(Impl::kOpen, std::memory_order_acq_rel);
  // Yield after a short spin, so that a worker that lost its core gets to finish.
  for (int i = 0; (p.word.load(std::memory_order_acquire) & Impl::kInsideMask) != 0; ++i) {
    if (i < kSpinPauses) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (p.error) std::rethrow_exception(p.error);
}

}  // namespace fathom
