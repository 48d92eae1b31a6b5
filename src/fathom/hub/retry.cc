#include "fathom/hub/retry.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <thread>

namespace fathom::hub {
namespace {

std::optional<double> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest == text.data() || value < 0) return std::nullopt;
  return static_cast<double>(value);
}

// The value behind "t=" in one item of a RateLimit header, e.g. "api";r=0;t=55
std::optional<double> parameter(std::string_view item, std::string_view name) {
  while (!item.empty()) {
    const size_t semicolon = std::min(item.find(';'), item.size());
    std::string_view part = item.substr(0, semicolon);
    part.remove_prefix(std::min(part.find_first_not_of(" \t"), part.size()));
    if (part.starts_with(name) && part.substr(name.size()).starts_with("="))
      return whole_number(part.substr(name.size() + 1));
    item.remove_prefix(std::min(semicolon + 1, item.size()));
  }
  return std::nullopt;
}

}  // namespace

bool is_worth_retrying(const HttpResponse& response) {
  if (response.was_stopped) return false;
  if (!response.failure.empty()) return response.may_pass_off;
  switch (response.status) {
    case 408:
    case 429:
    case 500:
    case 502:
    case 503:
    case 504:
      return true;
    default:
      return false;
  }
}

std::optional<double> told_delay_s(const HttpResponse& response) {
  std::optional<double> longest;
  std::string_view items = response.header("ratelimit");
  while (!items.empty()) {
    const size_t comma = std::min(items.find(','), items.size());
    const std::string_view item = items.substr(0, comma);
    items.remove_prefix(std::min(comma + 1, items.size()));
    if (parameter(item, "r").value_or(0) > 0) continue;  // this budget is not used up
    if (const auto t = parameter(item, "t")) longest = std::max(longest.value_or(0), *t + 1);
  }
  return longest ? longest : whole_number(response.header("retry-after"));
}

double retry_delay_s(const RetryPolicy& policy, int num_failures, const HttpResponse& response) {
  if (response.status == 429 || response.status == 503)
    if (const auto told = told_delay_s(response)) return std::min(*told, policy.max_told_delay_s);
  double delay = policy.first_delay_s;
  for (int i = 1; i < num_failures && delay < policy.max_delay_s; ++i) delay *= 2;
  return std::min(delay, policy.max_delay_s);
}

bool sleep_unless(double seconds, const std::atomic<bool>* stop) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    if (stop != nullptr && stop->load()) return false;
    const auto left = end - Clock::now();
    if (left <= Clock::duration::zero()) return true;
    std::this_thread::sleep_for(
        std::min<std::chrono::duration<double>>(left, std::chrono::milliseconds(50)));
  }
}

}  // namespace fathom::hub
