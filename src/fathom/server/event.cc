#include "fathom/server/event.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace fathom {

Event::Event(asio::any_io_executor executor)
    : state_(std::make_shared<State>(std::move(executor))) {}

void Event::notify() const {
  if (state_->is_posted.exchange(true)) return;
  asio::post(state_->executor, [state = state_] {
    state->is_posted = false;
    state->is_set = true;
    state->timer.cancel();
  });
}

asio::awaitable<void> Event::wait() const { co_await wait_for(std::chrono::hours(24 * 365)); }

asio::awaitable<bool> Event::wait_for(std::chrono::steady_clock::duration time) const {
  const std::shared_ptr<State> state = state_;
  const auto end = std::chrono::steady_clock::now() + time;
  while (!state->is_set) {
    if (std::chrono::steady_clock::now() >= end) co_return false;
    state->timer.expires_at(end);
    co_await state->timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
  state->is_set = false;
  co_return true;
}

}  // namespace fathom
