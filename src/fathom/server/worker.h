// A server that the router forwards to: whether it may be asked, how much it has to do, and spare
// connections to it. Everything of the router runs on one thread, so nothing here is locked.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fathom/server/http_client.h"
#include "fathom/server/prefix_index.h"

namespace fathom {

struct WorkerLimits {
  int64_t health_failure_threshold = 3;  // checks in a row
  int64_t health_success_threshold = 1;
  int64_t breaker_failure_threshold = 10;             // requests in a row
  int64_t breaker_success_threshold = 3;              // of the trials that close it again
  std::chrono::milliseconds breaker_timeout{60'000};  // open that long before the first trial
  std::chrono::milliseconds breaker_window{120'000};  // a failure that long ago is forgotten
};

enum class BreakerState {
  kClosed,    // requests pass
  kOpen,      // none does
  kHalfOpen,  // one at a time, as a trial
};
std::string_view breaker_state_name(BreakerState state);

class Worker {
 public:
  using Clock = std::chrono::steady_clock;

  Worker(std::string id, Url url, const WorkerLimits& limits)
      : id_(std::move(id)), url_(std::move(url)), limits_(limits) {}

  const std::string& id() const { return id_; }
  const Url& url() const { return url_; }

  // ---- Health: unknown workers are not asked. One that is out may come back as another process,
  // so its weights are unknown then ----
  bool is_healthy() const { return is_healthy_; }
  void note_check(bool is_good);
  /// Nobody listens there: it has to pass checks before it is asked again.
  void note_unreachable();

  // ---- Weights ----
  /// Empty while unknown.
  const std::string& weight_version() const { return weight_version_; }
  /// What a control call that went through the router has made of it; empty: not known.
  void set_weight_version(const std::string& version) {
    weight_version_ = version;
    ++num_version_changes_;
  }
  /// What it says itself. @param asked_at num_version_changes() at the time of the question: an
  /// answer that a control call has overtaken counts for nothing.
  void note_weight_version(const std::string& version, int64_t asked_at) {
    if (asked_at == num_version_changes_) weight_version_ = version;
  }
  int64_t num_version_changes() const { return num_version_changes_; }

  // ---- Circuit breaker ----
  BreakerState breaker(Clock::time_point now) const;
  void note_result(bool is_good, Clock::time_point now);

  /// Whether a request may go there now.
  bool is_available(Clock::time_point now) const;

  // ---- Load ----
  int64_t load() const { return load_; }  // samples under way
  void begin(int64_t num_samples) { load_ += num_samples, ++num_requests_; }
  void end(int64_t num_samples) { load_ -= num_samples; }
  int64_t num_requests() const { return num_requests_; }  // ever

  PrefixIndex& prefixes() { return prefixes_; }

  // ---- Spare connections ----
  std::optional<HttpClient> take_connection();
  void keep_connection(HttpClient client);
  void drop_connections() { spares_.clear(); }

 private:
  std::string id_;
  Url url_;
  WorkerLimits limits_;
  bool is_healthy_ = false;
  int64_t good_checks_ = 0, bad_checks_ = 0;  // in a row
  std::string weight_version_;
  int64_t num_version_changes_ = 0;
  bool is_open_ = false;  // the breaker, half-open included
  int64_t failures_ = 0, trial_successes_ = 0;
  Clock::time_point opened_, last_failure_;
  int64_t load_ = 0, num_requests_ = 0;
  PrefixIndex prefixes_;
  struct Spare {
    HttpClient client;
    Clock::time_point since;
  };
  std::vector<Spare> spares_;
};

}  // namespace fathom
