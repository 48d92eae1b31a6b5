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
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stopping{false};
  std::atomic<int> sleeping{0};

  // The loop in progress.
  RangeFn call = nullptr;
  void* fn = nullptr;
  int64_t count = 0;
  int64_t grain = 1;
  std::atomic<int64_t> next{0};
  std::atomic<int> active{0};
  std::mutex error_mutex;
  std::exception_ptr error;

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

  void work() {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpinPauses && generation.load(std::memory_order_acquire) == seen; ++i) {
        _mm_pause();
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        sleeping.fetch_add(1);
        wake.wait(lock, [&] { return generation.load() != seen || stopping.load(); });
        sleeping.fetch_sub(1);
      }
      if (stopping.load()) return;
      seen = generation.load(std::memory_order_acquire);
      take_ranges();
      active.fetch_sub(1, std::memory_order_release);
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
    impl_->generation.fetch_add(1);
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
  p.active.store(static_cast<int>(p.workers.size()), std::memory_order_relaxed);
  {
    // A worker on its way to sleep re-checks the generation under this mutex.
    std::lock_guard lock(p.mutex);
    p.generation.fetch_add(1);
    if (p.sleeping.load() > 0) p.wake.notify_all();
  }
  p.take_ranges();
  // The pool may have more threads than the machine has free cores: yield after a short spin, so
  // that a worker that was not scheduled yet gets to run.
  for (int i = 0; p.active.load(std::memory_order_acquire) != 0; ++i) {
    if (i < kSpinPauses) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (p.error) std::rethrow_exception(p.error);
}

}  // namespace fathom
