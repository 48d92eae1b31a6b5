// The engine's metrics, under the names that SGLang's dashboards read.
#pragma once

#include <string>

#include "fathom/server/metrics.h"

namespace fathom {

struct EngineMetrics {
  explicit EngineMetrics(const std::string& model_name);

  MetricsPage page;
  MetricValue &prompt_tokens, &generation_tokens, &num_requests, &num_aborted_requests;
  MetricValue &num_running, &num_queued, &num_paused, &gen_throughput, &max_running, &context_len;
  MetricHistogram &time_to_first_token, &inter_token_latency, &e2e_latency;
  MetricHistogram &prompt_length, &generation_length;
};

}  // namespace fathom
