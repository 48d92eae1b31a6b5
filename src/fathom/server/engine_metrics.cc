#include "fathom/server/engine_metrics.h"

#include <algorithm>

namespace fathom {
namespace {

double ratio(double part, double whole) { return whole == 0 ? 0 : part / whole; }

}  // namespace

EngineMetrics::EngineMetrics(const std::string& model_name)
    : page({{"model_name", model_name}}),
      prompt_tokens(page.counter("sglang:prompt_tokens_total", "Tokens of prompts.")),
      generation_tokens(page.counter("sglang:generation_tokens_total", "Tokens of answers.")),
      num_requests(page.counter("sglang:num_requests_total", "Prompts answered.")),
      num_aborted_requests(
          page.counter("sglang:num_aborted_requests_total", "Prompts with an aborted answer.")),
      num_running(page.gauge("sglang:num_running_reqs", "Answers and prompts in the making.")),
      num_queued(page.gauge("sglang:num_queue_reqs", "Answers and prompts that wait.")),
      num_paused(page.gauge("sglang:num_paused_reqs", "Answers held by a pause.")),
      num_retracted(
          page.gauge("sglang:num_retracted_reqs", "Answers preempted in the last second.")),
      gen_throughput(page.gauge("sglang:gen_throughput", "Tokens of answers a second.")),
      utilization(page.gauge("sglang:utilization", "Share of the places that are taken.")),
      max_running(page.gauge("sglang:max_running_requests", "Answers in the making at most.")),
      context_len(page.gauge("sglang:context_len", "Tokens of prompt and answer at most.")),
      time_to_first_token(page.histogram("sglang:time_to_first_token_seconds",
                                         "From a request to an answer's first token.",
                                         one_two_five(0.001, 17))),
      inter_token_latency(page.histogram("sglang:inter_token_latency_seconds",
                                         "Between two tokens of an answer.",
                                         one_two_five(0.0001, 16))),
      e2e_latency(page.histogram("sglang:e2e_request_latency_seconds",
                                 "From a request to the end of an answer.",
                                 one_two_five(0.001, 20))),
      queue_time(page.histogram("sglang:queue_time_seconds",
                                "From a request to its first step of the engine.",
                                one_two_five(0.001, 17))),
      waiting_stage(page.histogram("sglang:per_stage_req_latency_seconds",
                                   "Parts of a request's time.", one_two_five(0.001, 20),
                                   {{"stage", "prefill_waiting"}})),
      prefill_stage(page.histogram("sglang:per_stage_req_latency_seconds",
                                   "Parts of a request's time.", one_two_five(0.001, 20),
                                   {{"stage", "prefill_forward"}})),
      decode_stage(page.histogram("sglang:per_stage_req_latency_seconds",
                                  "Parts of a request's time.", one_two_five(0.001, 20),
                                  {{"stage", "decode_forward"}})),
      prompt_length(page.histogram("sglang:prompt_tokens_histogram", "Tokens of a prompt.",
                                   one_two_five(1, 19))),
      generation_length(page.histogram("sglang:generation_tokens_histogram", "Tokens of an answer.",
                                       one_two_five(1, 19))),
      cached_tokens(page.counter("sglang:cached_tokens_total",
                                 "Tokens of prompts that came from the prefix cache.")),
      prefill_compute(page.counter("sglang:realtime_tokens_total", "Tokens by what was done.",
                                   {{"mode", "prefill_compute"}})),
      prefill_cache(page.counter("sglang:realtime_tokens_total", "Tokens by what was done.",
                                 {{"mode", "prefill_cache"}})),
      decode(page.counter("sglang:realtime_tokens_total", "Tokens by what was done.",
                          {{"mode", "decode"}})),
      preemptions(page.counter("sglang:num_retracted_requests_total",
                               "Times that a state was taken away.")),
      preempted_prompt_tokens(page.counter("sglang:num_retracted_input_tokens_total",
                                           "Tokens of the prompts of what was preempted.")),
      preempted_answer_tokens(page.counter("sglang:num_retracted_output_tokens_total",
                                           "Generated tokens of what was preempted.")),
      evicted_tokens(page.counter("sglang:evicted_tokens_total",
                                  "Tokens that the prefix cache gave up for others.")),
      verify_calls(page.counter("sglang:spec_verify_calls_total",
                                "Times that an answer's guesses were verified.")),
      accept_length(page.gauge("sglang:spec_accept_length", "Tokens that a verification gives.")),
      accept_rate(page.gauge("sglang:spec_accept_rate", "Share of the guesses that were right.")),
      cache_hit_rate(page.gauge("sglang:cache_hit_rate",
                                "Share of prompt tokens that came from the prefix cache.")),
      new_token_ratio(
          page.gauge("sglang:new_token_ratio",
                     "Share of the tokens still allowed that memory is set aside for.")),
      token_usage(page.gauge("sglang:token_usage",
                             "Share of the memory that is in use, the prefix cache left out.")),
      full_token_usage(page.gauge("sglang:full_token_usage",
                                  "Share of the memory that is in use, the prefix cache too.")),
      swa_token_usage(page.gauge("sglang:swa_token_usage",
                                 "Share of the memory that windows could take and do.")),
      num_used_tokens(
          page.gauge("sglang:num_used_tokens", "Tokens of states, the prefix cache left out.")),
      kv_available(page.gauge("sglang:kv_available_tokens", "Tokens whose history would fit.")),
      kv_evictable(page.gauge("sglang:kv_evictable_tokens", "Tokens of the prefix cache.")),
      kv_used(page.gauge("sglang:kv_used_tokens", "Tokens whose history is kept.")),
      swa_available(page.gauge("sglang:swa_available_tokens", "Tokens whose window would fit.")),
      swa_evictable(
          page.gauge("sglang:swa_evictable_tokens", "Tokens of windows in the prefix cache.")),
      swa_used(page.gauge("sglang:swa_used_tokens", "Tokens of windows that are kept.")),
      max_total_tokens(page.gauge("sglang:max_total_num_tokens", "Tokens whose history fits.")),
      page_size(page.gauge("sglang:page_size", "Tokens of a page.")),
      num_pages(page.gauge("sglang:num_pages", "Pages that fit.")),
      state_used_bytes(
          page.gauge("fathom:state_used_bytes", "Bytes of states and cached prefixes.")),
      state_budget_bytes(page.gauge("fathom:state_budget_bytes", "Bytes that they may take.")),
      is_cuda_graph(page.gauge("sglang:is_cuda_graph", "Always 0: the CPU has no CUDA graphs.")),
      cuda_graph_passes(page.counter("sglang:cuda_graph_passes_total",
                                     "Always 0: the CPU has no CUDA graphs.")) {}

void EngineMetrics::take(const Engine& engine) {
  const EngineCounters c = engine.counters();
  const auto set = [](MetricValue& metric, int64_t value) {
    metric.set(static_cast<double>(value));
  };
  set(cached_tokens, c.prefix_cache.num_hit_tokens);
  set(prefill_compute, c.num_prompt_tokens);
  set(prefill_cache, c.prefix_cache.num_hit_tokens);
  set(decode, c.num_generated_tokens);
  set(preemptions, c.num_preemptions);
  set(preempted_prompt_tokens, c.num_preempted_prompt_tokens);
  set(preempted_answer_tokens, c.num_preempted_answer_tokens);
  const int64_t page_tokens = engine.state_layout().page_size;
  set(evicted_tokens, c.prefix_cache.num_evictions * page_tokens);
  set(verify_calls, c.num_verified);
  accept_length.set(ratio(static_cast<double>(c.num_accepted + c.num_verified),
                          static_cast<double>(c.num_verified)));
  accept_rate.set(c.acceptance_rate());
  cache_hit_rate.set(ratio(static_cast<double>(c.prefix_cache.num_hit_tokens),
                           static_cast<double>(c.prefix_cache.num_asked_tokens)));
  new_token_ratio.set(engine.reserved_share());

  const TokenUsage usage = fathom::token_usage(engine);
  token_usage.set(usage.share);
  full_token_usage.set(usage.full_share);
  swa_token_usage.set(ratio(static_cast<double>(usage.window_used),
                            static_cast<double>(usage.window_used + usage.window_available)));
  set(num_used_tokens, std::max<int64_t>(0, usage.used - usage.evictable));
  set(kv_available, usage.available);
  set(kv_evictable, usage.evictable);
  set(kv_used, usage.used);
  set(swa_available, usage.window_available);
  set(swa_evictable, usage.window_evictable);
  set(swa_used, usage.window_used);
  set(max_total_tokens, usage.max_total);
  set(page_size, page_tokens);
  set(num_pages, usage.max_total / page_tokens);
  set(state_used_bytes, engine.state_pools().used_bytes());
  set(state_budget_bytes, engine.state_pools().budget_bytes());
}

TokenUsage token_usage(const Engine& engine) {
  const StateLayout& layout = engine.state_layout();
  const StatePools& pools = engine.state_pools();
  const std::vector<PoolUsage> kinds = pools.usage();
  const int64_t num_cached_pages = engine.counters().num_cached_pages;
  const int64_t used_bytes = pools.used_bytes(), budget = pools.budget_bytes();
  const int64_t free_bytes = std::max<int64_t>(0, budget - used_bytes);
  // A model without compressed layers has no history: its tokens cost nothing but their window.
  const int64_t page_bytes = std::max<int64_t>(1, layout.page_bytes());
  TokenUsage usage;
  usage.max_total = budget / page_bytes * layout.page_size;
  if (!layout.histories.empty()) {
    usage.used = kinds[layout.histories[0].kind].num_used * layout.page_size;
  }
  usage.evictable = num_cached_pages * layout.page_size;
  usage.available = free_bytes / page_bytes * layout.page_size;
  usage.window_used = kinds[StateLayout::kWindow].num_used * layout.window_rows;
  usage.window_evictable = num_cached_pages * layout.window_rows;
  usage.window_available =
      free_bytes / std::max<int64_t>(1, layout.fixed_bytes()) * layout.window_rows;
  const int64_t cached_bytes =
      std::min(used_bytes, num_cached_pages * (layout.page_bytes() + layout.fixed_bytes()));
  usage.share = ratio(static_cast<double>(used_bytes - cached_bytes), static_cast<double>(budget));
  usage.full_share = ratio(static_cast<double>(used_bytes), static_cast<double>(budget));
  return usage;
}

}  // namespace fathom
