#include "fathom/server/engine_metrics.h"

namespace fathom {

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
      gen_throughput(page.gauge("sglang:gen_throughput", "Tokens of answers a second.")),
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
      prompt_length(page.histogram("sglang:prompt_tokens_histogram", "Tokens of a prompt.",
                                   one_two_five(1, 19))),
      generation_length(page.histogram("sglang:generation_tokens_histogram", "Tokens of an answer.",
                                       one_two_five(1, 19))) {}

}  // namespace fathom
