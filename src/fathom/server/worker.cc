#include "fathom/server/worker.h"

#include <algorithm>

namespace fathom {
namespace {

constexpr size_t kMaxSpares = 64;
// Below the idle time of the server at the other end, so that it is rarely the one that closes.
constexpr std::chrono::seconds kSpareLife{30};

}  // namespace

std::string_view breaker_state_name(BreakerState state) {
  switch (state) {
    case BreakerState::kClosed:
      return "closed";
    case BreakerState::kOpen:
      return "open";
    case BreakerState::kHalfOpen:
      return "half_open";
  }
  return "";
}

void Worker::note_check(bool is_good) {
  good_checks_ = is_good ? good_checks_ + 1 : 0;
  bad_checks_ = is_good ? 0 : bad_checks_ + 1;
  if (good_checks_ >= limits_.health_success_threshold) is_healthy_ = true;
  if (bad_checks_ >= limits_.health_failure_threshold) {
    is_healthy_ = false;
    weight_version_.clear();
  }
}

void Worker::note_unreachable() {
  is_healthy_ = false;
  weight_version_.clear();
  good_checks_ = 0;
  drop_connections();
}

BreakerState Worker::breaker(Clock::time_point now) const {
  if (!is_open_) return BreakerState::kClosed;
  return now - opened_ < limits_.breaker_timeout ? BreakerState::kOpen : BreakerState::kHalfOpen;
}

void Worker::note_result(bool is_good, Clock::time_point now) {
  if (is_open_) {
    if (breaker(now) == BreakerState::kOpen) return;  // of a request from before
    if (!is_good) {
      opened_ = now;
      trial_successes_ = 0;
    } else if (++trial_successes_ >= limits_.breaker_success_threshold) {
      is_open_ = false;
      failures_ = 0;
    }
    return;
  }
  if (is_good) {
    failures_ = 0;
    return;
  }
  if (now - last_failure_ > limits_.breaker_window) failures_ = 0;
  last_failure_ = now;
  if (++failures_ < limits_.breaker_failure_threshold) return;
  is_open_ = true;
  opened_ = now;
  trial_successes_ = 0;
}

bool Worker::is_available(Clock::time_point now) const {
  if (!is_healthy_) return false;
  switch (breaker(now)) {
    case BreakerState::kClosed:
      return true;
    case BreakerState::kOpen:
      return false;
    case BreakerState::kHalfOpen:
      return load_ == 0;
  }
  return false;
}

std::optional<HttpClient> Worker::take_connection() {
  const Clock::time_point oldest = Clock::now() - kSpareLife;
  std::erase_if(spares_, [&](const Spare& spare) { return spare.since < oldest; });
  if (spares_.empty()) return std::nullopt;
  std::optional<HttpClient> client = std::move(spares_.back().client);
  spares_.pop_back();
  return client;
}

void Worker::keep_connection(HttpClient client) {
  if (spares_.size() < kMaxSpares) spares_.push_back({std::move(client), Clock::now()});
}

}  // namespace fathom
