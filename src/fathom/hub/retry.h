// When a request is tried again, and after how long.
#pragma once

#include <atomic>
#include <optional>

#include "fathom/hub/http.h"

namespace fathom::hub {

struct RetryPolicy {
  int max_tries = 5;  // in a row without progress
  double first_delay_s = 1, max_delay_s = 8;
  double max_told_delay_s = 600;  // longest wait that a server may ask for
};

/// 408, 429, 500, 502, 503, 504, and failures of the network that may pass.
bool is_worth_retrying(const HttpResponse& response);

/// What the server asks for: t + 1 of `RateLimit: "api";r=0;t=<s>`, else Retry-After in seconds.
std::optional<double> told_delay_s(const HttpResponse& response);

/// @param num_failures in a row, from 1. 1, 2, 4, 8, 8 ... seconds, or what the server asks for.
double retry_delay_s(const RetryPolicy& policy, int num_failures, const HttpResponse& response);

/// Sleeps; ends early when `stop` is set. @return false when it was.
bool sleep_unless(double seconds, const std::atomic<bool>* stop);

}  // namespace fathom::hub
