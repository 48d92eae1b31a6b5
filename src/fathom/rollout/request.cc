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
  require(p.min_p >= 0 && p.min_p <= 1, "min_p ", p.min_p, ": must be from 0 to 1 (0 = off)");
  require(p.min_new_tokens >= 0 && p.min_new_tokens <= p.max_new_tokens, "min_new_tokens ",
          p.min_new_tokens, ": must be from 0 to max_new_tokens, which is ", p.max_new_tokens);
  require(std::abs(p.frequency_penalty) <= 2, "frequency_penalty ", p.frequency_penalty,
          ": must be from -2 to 2");
  require(std::abs(p.presence_penalty) <= 2, "presence_penalty ", p.presence_penalty,
          ": must be from -2 to 2");
  require(p.repetition_penalty >= 0.001f && p.repetition_penalty <= 2, "repetition_penalty ",
          p.repetition_penalty, ": must be from 0.001 to 2 (1 = off)");
  for (const auto& [id, bias] : p.logit_bias) {
    require(std::abs(bias) <= 1000, "logit_bias of token ", id, " is ", bias,
            ": must be from -1000 to 1000");
  }
  for (const std::string& stop : p.stop) {
    require(!stop.empty(), "stop: an empty string would stop before the first token");
  }
  FATHOM_CHECK(problems.empty(), "sampling parameters:", problems);
}

}  // namespace fathom
