// A fixed set of worker threads for data-parallel loops.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace fathom {

class ThreadPool {
 public:
  /// @param num_threads total threads that take part in a loop, the caller included; at least 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  /// Calls body(begin, end) on ranges that cover [0, count) once, each at most `grain` long (the
  /// last may be shorter). Ranges are handed out in any order to any thread, so a body may only
  /// write what belongs to its own indices; every kernel keeps one output element inside one range,
  /// which is why bits do not depend on the number of threads. Runs inline when called from inside
  /// another loop, with one thread, or when one range is enough. The first exception is rethrown.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    using Fn = std::remove_reference_t<Body>;
    run(
        count, grain,
        [](void* fn, int64_t begin, int64_t end) { (*static_cast<Fn*>(fn))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using RangeFn = void (*)(void* fn, int64_t begin, int64_t end);
  void run(int64_t count, int64_t grain, RangeFn call, void* fn);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
