#include "fathom/rollout/request.h"

#include <cmath>

#include "fathom/base/error.h"

namespace fathom {

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
  }
  FATHOM_ASSERT(false, "finish reason ", static_cast<int>(reason));
  return "";
}

void check_sampling_params(const SamplingParams& p) {
  std::string problems;
  const auto require = [&](bool ok, const auto&... parts) {
    if (!ok) problems += str_cat("\n  ", parts...);
  };
  require(std::isfinite(p.temperature) && p.temperature >= 0, "temperature ", p.temperature,
          ": must be a number >= 0 (0 takes the most likely token)");
  require(p.top_p > 0 && p.top_p <= 1, "top_p ", p.top_p,
          ": must be above 0 and at most 1 (1 = off)");
  require(p.top_k >= -1, "top_k ", p.top_k, ": must be at least 1, or 0 or -1 for off");
  require(p.max_new_tokens >= 0, "max_new_tokens ", p.max_new_tokens, ": must be >= 0");
  for (const std::string& stop : p.stop) {
    require(!stop.empty(), "stop: an empty string would stop before the first token");
  }
  FATHOM_CHECK(problems.empty(), "sampling parameters:", problems);
}

}  // namespace fathom
