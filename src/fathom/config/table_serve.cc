// Rows of serve: the HTTP server and the router.
#include "fathom/config/table.h"

namespace fathom::config {
namespace {

void describe_server(OptionTable& table, Options& options) {
  ServeOptions& o = options.serve;
  table.group("HTTP server", set_of(Command::kServe));
  table.add(
      "host", &o.host,
      "IP address to listen on; another one than this machine's own loopback needs --api-key");
  table.add("port", &o.port, "port to listen on; 0: one that is free").at_least(0).at_most(65535);
  table
      .add("api-key", &o.api_key,
           "what clients send as `Authorization: Bearer KEY`. Better given by the environment, "
           "where other users do not see it")
      .any_word();
  table.add("http-threads", &o.http_threads, "threads that speak HTTP").at_least(1).at_most(64);
  table.add("max-connections", &o.max_connections, "connections at a time").at_least(1);
  table.add("max-body-mb", &o.max_body_mb, "MiB of a request's body").at_least(1).at_most(1024);
  table
      .add("request-timeout", &o.request_timeout,
           "seconds that a request may take, waiting included")
      .at_least(1);
  table
      .add("drain-timeout", &o.drain_timeout,
           "seconds that requests under way get after SIGTERM or SIGINT; then, or at a second "
           "signal, they are aborted")
      .at_least(0);
  table
      .add("max-queued-requests", &o.max_queued_requests,
           "answers that may wait beside those in the making; more are refused with 503")
      .at_least(0);
  table.add("served-model-name", &o.served_model_name,
            "name that clients use; unset: the checkpoint directory's name");
  table.add_choice<ChatThinking>(
      "thinking-mode", &o.thinking_mode,
      {{"thinking", ChatThinking::kThinking}, {"chat", ChatThinking::kChat}},
      "whether the model thinks in chats that do not say");
  table
      .add("random-seed", &o.random_seed,
           "makes the seeds of requests that bring none; unset: another one at every start")
      .at_least(0);
  table.add("incremental-streaming-output", &o.incremental_streaming_output,
            "events of /generate carry what is new; otherwise everything so far");
  table
      .add("stream-interval", &o.stream_interval,
           "tokens from one event of a stream to the next; the first comes at once")
      .at_least(1);
  table
      .add("health-check-timeout", &o.health_check_timeout,
           "seconds that /health_generate (unset: 20), or a router's check (unset: 5), waits")
      .at_least(1);
}

void describe_router(OptionTable& table, Options& options) {
  ServeOptions& o = options.serve;
  table.group("Router", set_of(Command::kServe));
  table.add("router", &o.router, "forward to other servers in place of serving a checkpoint");
  table.add("worker-urls", &o.worker_urls, "servers to begin with, http://host:port each");
  table
      .add("worker-api-key", &o.worker_api_key,
           "key of the workers; unset: clients' own headers are passed on")
      .any_word();
  table.add_choice<RoutingPolicy>("policy", &o.policy,
                                  {{"cache_aware", RoutingPolicy::kCacheAware},
                                   {"round_robin", RoutingPolicy::kRoundRobin},
                                   {"least_loaded", RoutingPolicy::kLeastLoaded},
                                   {"sticky", RoutingPolicy::kSticky}},
                                  "which worker gets a request");
  table.add("health-check-interval", &o.health_check_interval, "seconds between two checks")
      .at_least(1);
  table
      .add("health-failure-threshold", &o.health_failure_threshold,
           "failed checks in a row that take a worker out")
      .at_least(1);
  table
      .add("health-success-threshold", &o.health_success_threshold,
           "good checks in a row that bring it back")
      .at_least(1);
  table.add("retry-max-retries", &o.retry_max_retries, "other attempts at a request that failed")
      .at_least(0);
  table
      .add("cb-failure-threshold", &o.cb_failure_threshold,
           "failed requests in a row that open a worker's circuit breaker")
      .at_least(1);
  table
      .add("cb-timeout-duration-secs", &o.cb_timeout,
           "seconds until an open breaker lets a request through again")
      .at_least(1);
}

}  // namespace

void describe_serve_options(OptionTable& table, Options& options) {
  describe_server(table, options);
  describe_router(table, options);
}

}  // namespace fathom::config
