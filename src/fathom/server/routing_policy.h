// Which worker gets a request.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fathom/server/worker.h"

namespace fathom {

enum class RoutingPolicyKind {
  kCacheAware,   // where most of the prompt was seen before, unless loads are far apart
  kRoundRobin,   // in turn
  kLeastLoaded,  // fewest samples under way
  kSticky,       // all requests of a routing key to one worker
};

/// What a policy looks at.
struct RoutedRequest {
  std::string prompt;       // text, or token ids as bytes; empty: unknown
  std::string routing_key;  // empty: none
  int64_t num_samples = 1;
};

using WorkerList = std::vector<std::shared_ptr<Worker>>;

class RoutingPolicy {
 public:
  using Clock = std::chrono::steady_clock;
  // Loads are far apart when the largest is above the smallest by this much and this often.
  static constexpr int64_t kImbalance = 64;
  static constexpr double kImbalanceRatio = 1.5;
  static constexpr double kCacheThreshold = 0.3;  // share of the prompt that has to match
  static constexpr std::chrono::hours kStickyTime{4};
  static constexpr size_t kMaxKeys = 1 << 20;

  explicit RoutingPolicy(RoutingPolicyKind kind) : kind_(kind) {}

  /// @param workers  those that may be asked, at least one, in a fixed order.
  /// @param is_retry  another worker has failed with this request: nobody's turn is used up.
  std::shared_ptr<Worker> choose(const WorkerList& workers, const RoutedRequest& request,
                                 bool is_retry, Clock::time_point now);

 private:
  std::shared_ptr<Worker> least_loaded(const WorkerList& workers);
  std::shared_ptr<Worker> cache_aware(const WorkerList& workers, const RoutedRequest& request);
  std::shared_ptr<Worker> sticky(const WorkerList& workers, const RoutedRequest& request,
                                 Clock::time_point now);

  RoutingPolicyKind kind_;
  uint64_t turn_ = 0;
  struct Stick {
    std::string worker_id;
    Clock::time_point last_use;
  };
  std::unordered_map<std::string, Stick> sticks_;  // by routing key
};

}  // namespace fathom
