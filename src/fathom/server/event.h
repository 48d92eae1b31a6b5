// A wake-up call for one coroutine, from any thread.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>

namespace fathom {

namespace asio = boost::asio;

/// Calls of notify() between two wait()s count as one; none is lost. Copies share the event.
class Event {
 public:
  /// @param executor  of the coroutine that waits: one thread at a time (a strand).
  explicit Event(asio::any_io_executor executor);

  /// Any thread. Cheap when a wake-up is on its way already.
  void notify() const;

  /// On the executor. Returns at once when notify() was called since the last wait.
  asio::awaitable<void> wait() const;
  /// @return false when the time ran out.
  asio::awaitable<bool> wait_for(std::chrono::steady_clock::duration time) const;

 private:
  struct State {
    explicit State(asio::any_io_executor e) : executor(e), timer(e) {}
    asio::any_io_executor executor;
    asio::steady_timer timer;
    std::atomic<bool> is_posted = false;
    bool is_set = false;  // on the executor
  };
  std::shared_ptr<State> state_;
};

}  // namespace fathom
