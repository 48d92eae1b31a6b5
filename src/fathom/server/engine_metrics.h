// The engine's metrics, under the names that SGLang's dashboards read.
#pragma once

#include <string>

#include "fathom/rollout/engine.h"
#include "fathom/server/metrics.h"

namespace fathom {

struct EngineMetrics {
  explicit EngineMetrics(const std::string& model_name);

  /// Takes over what the engine counts itself, and how full its memory is. On its thread.
  void take(const Engine& engine);

  MetricsPage page;

  // Of requests, by the service.
  MetricValue &prompt_tokens, &generation_tokens, &num_requests, &num_aborted_requests;
  MetricValue &num_running, &num_queued, &num_paused, &num_retracted, &gen_throughput, &utilization;
  MetricValue &max_running, &context_len;
  MetricHistogram &time_to_first_token, &inter_token_latency, &e2e_latency, &queue_time;
  MetricHistogram &waiting_stage, &prefill_stage, &decode_stage;
  MetricHistogram &prompt_length, &generation_length;

  // Of the engine, by take().
  MetricValue &cached_tokens, &prefill_compute, &prefill_cache, &decode;
  MetricValue &preemptions, &preempted_prompt_tokens, &preempted_answer_tokens, &evicted_tokens;
  MetricValue &verify_calls, &accept_length, &accept_rate, &cache_hit_rate, &new_token_ratio;
  MetricValue &token_usage, &full_token_usage, &swa_token_usage, &num_used_tokens;
  MetricValue &kv_available, &kv_evictable, &kv_used, &swa_available, &swa_evictable, &swa_used;
  MetricValue &max_total_tokens, &page_size, &num_pages;
  MetricValue &state_used_bytes, &state_budget_bytes;
  MetricValue &is_cuda_graph, &cuda_graph_passes;
};

/// An engine's memory in tokens. Both kinds of state share one budget of bytes, so what is free of
/// either is what there would be if all free bytes went there.
struct TokenUsage {
  int64_t max_total = 0;                           // 0: no limit
  int64_t used = 0, evictable = 0, available = 0;  // history: pages of tokens
  int64_t window_used = 0, window_evictable = 0, window_available = 0;
  double share = 0;       // of the budget that is used, the prefix cache not counted
  double full_share = 0;  // the prefix cache counted
};
TokenUsage token_usage(const Engine& engine);

}  // namespace fathom
