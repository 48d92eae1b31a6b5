#include "fathom/server/routing_policy.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {

std::shared_ptr<Worker> RoutingPolicy::choose(const WorkerList& workers,
                                              const RoutedRequest& request, bool is_retry,
                                              Clock::time_point now) {
  FATHOM_ASSERT(!workers.empty(), "no worker to choose from");
  if (!is_retry) ++turn_;
  switch (kind_) {
    case RoutingPolicyKind::kCacheAware:
      return cache_aware(workers, request);
    case RoutingPolicyKind::kRoundRobin:
      return workers[turn_ % workers.size()];
    case RoutingPolicyKind::kLeastLoaded:
      return least_loaded(workers);
    case RoutingPolicyKind::kSticky:
      return sticky(workers, request, now);
  }
  return workers.front();
}

/// In turn among those that are equal, so that idle workers all get something.
std::shared_ptr<Worker> RoutingPolicy::least_loaded(const WorkerList& workers) {
  const size_t first = turn_ % workers.size();
  std::shared_ptr<Worker> best = workers[first];
  for (size_t i = 1; i < workers.size(); ++i) {
    const std::shared_ptr<Worker>& other = workers[(first + i) % workers.size()];
    if (other->load() < best->load()) best = other;
  }
  return best;
}

std::shared_ptr<Worker> RoutingPolicy::cache_aware(const WorkerList& workers,
                                                   const RoutedRequest& request) {
  const auto by_load = [](const auto& a, const auto& b) { return a->load() < b->load(); };
  const auto [low, high] = std::minmax_element(workers.begin(), workers.end(), by_load);
  const int64_t smallest = (*low)->load(), largest = (*high)->load();
  const bool is_unbalanced =
      largest - smallest > kImbalance &&
      static_cast<double>(largest) > kImbalanceRatio * static_cast<double>(smallest);
  std::shared_ptr<Worker> chosen;
  if (is_unbalanced || request.prompt.empty()) {
    chosen = least_loaded(workers);
  } else {
    size_t best = 0;
    for (const std::shared_ptr<Worker>& worker : workers) {
      const size_t match = worker->prefixes().match(request.prompt);
      if (match > best) best = match, chosen = worker;
    }
    if (static_cast<double>(best) <= kCacheThreshold * static_cast<double>(request.prompt.size())) {
      chosen = *std::min_element(workers.begin(), workers.end(), [](const auto& a, const auto& b) {
        return a->prefixes().size() < b->prefixes().size();
      });
    }
  }
  chosen->prefixes().insert(request.prompt);
  return chosen;
}

std::shared_ptr<Worker> RoutingPolicy::sticky(const WorkerList& workers,
                                              const RoutedRequest& request, Clock::time_point now) {
  if (request.routing_key.empty()) return least_loaded(workers);
  if (sticks_.size() >= kMaxKeys) {
    std::erase_if(sticks_,
                  [&](const auto& entry) { return now - entry.second.last_use > kStickyTime; });
    if (sticks_.size() >= kMaxKeys) sticks_.clear();
  }
  Stick& stick = sticks_[request.routing_key];
  const bool is_fresh = now - stick.last_use <= kStickyTime;
  const auto found = std::find_if(workers.begin(), workers.end(), [&](const auto& worker) {
    return worker->id() == stick.worker_id;
  });
  const std::shared_ptr<Worker> chosen =
      is_fresh && found != workers.end() ? *found : least_loaded(workers);
  stick = {chosen->id(), now};
  return chosen;
}

}  // namespace fathom
