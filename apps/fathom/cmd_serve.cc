// serve: an engine behind HTTP, or with --router a router in front of several.
#include <csignal>
#include <random>
#include <thread>

#include "commands.h"
#include "execution.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/load.h"
#include "fathom/config/derived.h"
#include "fathom/rollout/engine_options.h"
#include "fathom/rollout/generate.h"
#include "fathom/server/router.h"
#include "fathom/server/server.h"

namespace fathom {
namespace {

/// SIGTERM and SIGINT as something to wait for. To be made before any thread starts, so that no
/// other thread gets them.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  /// @return false when none came in that time.
  bool wait_for(std::chrono::milliseconds time) const {
    timespec limit{};
    limit.tv_sec = time.count() / 1000;
    limit.tv_nsec = time.count() % 1000 * 1'000'000;
    return sigtimedwait(&set_, nullptr, &limit) > 0;
  }
  void wait() const {
    while (!wait_for(std::chrono::hours(1))) {
    }
  }

 private:
  sigset_t set_;
};

HttpServerOptions http_options(const config::ServeOptions& o) {
  if (!is_loopback_address(o.host) && !o.api_key) {
    throw ConfigError(
        str_cat("--host ", o.host, ": others could reach the server there, so it needs a key",
                "\n  fix: set MILES_SCRIPT_API_KEY or --api-key, or leave --host at 127.0.0.1"));
  }
  HttpServerOptions http;
  http.host = o.host;
  http.port = static_cast<int>(o.port);
  http.num_threads = static_cast<int>(o.http_threads);
  http.max_body_bytes = o.max_body_mb << 20;
  http.max_total_body_bytes = std::max<int64_t>(http.max_body_bytes, 1 << 30);
  http.max_connections = o.max_connections;
  return http;
}

/// Waits for a signal, then drains until all is answered, the time is up or another signal comes.
template <typename Server>
void run_until_signal(const StopSignals& signals, Server& server, int64_t drain_seconds) {
  signals.wait();
  log_info("serve: shutting down; requests under way get up to ", drain_seconds,
           " s, another signal breaks them off");
  server.begin_drain();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(drain_seconds);
  bool is_hurried = false;
  while (!server.is_idle() && !is_hurried && std::chrono::steady_clock::now() < end) {
    is_hurried = signals.wait_for(std::chrono::milliseconds(50));
  }
  const bool was_idle = server.is_idle();
  server.drain(std::chrono::milliseconds(0));
  log_info("serve: done", was_idle ? "" : "; unfinished requests were aborted");
}

void release_values(Weights* weights) {
  for_each_parameter(*weights, [](Parameter& p) { p.master = p.compute = p.grad = Tensor(); });
}

ServedModel open_model(const config::Options& o) {
  const std::string& directory = *o.launch.hf_checkpoint;
  ServedModel model;
  model.config = load_model_config(directory);
  if (has_tokenizer(directory)) {
    model.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::load(directory));
  }
  model.path = directory;
  model.name = o.serve.served_model_name.value_or(base_name(directory));
  model.thinking_mode = o.serve.thinking_mode == config::ChatThinking::kThinking
                            ? ThinkingMode::kThinking
                            : ThinkingMode::kChat;
  uint64_t seed = 0;
  if (o.serve.random_seed) {
    seed = static_cast<uint64_t>(*o.serve.random_seed);
  } else {
    std::random_device device;
    seed = (uint64_t{device()} << 32) | device();
  }
  model.next_seed = [seed, count = std::make_shared<std::atomic<uint64_t>>(0)] {
    // Below 2^53, so that every JSON parser gives the seed back that meta_info tells.
    return mix64(seed, (*count)++) >> 11;
  };
  return model;
}

int serve_checkpoint(const config::Options& o, const StopSignals& signals) {
  const Execution execution(o.runtime);
  ServerOptions options;
  options.http = http_options(o.serve);
  options.service.max_running_requests = o.engine.max_running_requests;
  options.service.max_queued_requests = o.serve.max_queued_requests;
  options.service.stream_interval = o.serve.stream_interval;
  options.api.api_key = o.serve.api_key.value_or("");
  options.api.incremental_stream = o.serve.incremental_streaming_output;
  options.api.request_timeout = std::chrono::seconds(o.serve.request_timeout);
  if (o.serve.health_check_timeout) {
    options.api.health_timeout = std::chrono::seconds(*o.serve.health_check_timeout);
  }
  options.api.version = FATHOM_VERSION;
  options.api.server_args = {{"max_running_requests", o.engine.max_running_requests},
                             {"chunked_prefill_size", o.engine.chunked_prefill_size},
                             {"max_queued_requests", o.serve.max_queued_requests},
                             {"host", o.serve.host},
                             {"port", o.serve.port}};

  ServedModel model = open_model(o);
  const LoadOptions parts = {.with_mtp = config::num_guessed_tokens(o) > 0};
  const auto load = [&](const std::string& directory) {
    const ExecContext& ctx = execution.context();
    return in_precision(ctx, load_weights(ctx, directory, parts), o);
  };
  log_info("serve: loading ", model.path);
  Weights weights = load(model.path);
  std::string weights_directory = model.path;  // where the weights of now come from
  const Json served = model_config_to_json(load_model_config(model.path), "float32");
  options.api.weights = &weights;
  options.api.load_weights = [&](const std::string& directory) {
    FATHOM_CHECK(model_config_to_json(load_model_config(directory), "float32") == served, directory,
                 ": its config.json describes another model than the one that is served");
    weights = load(directory);
    weights_directory = directory;
  };
  options.api.release_weights = [&] { release_values(&weights); };
  options.api.restore_weights = [&] { weights = load(weights_directory); };

  const auto make_engine = [&, tokenizer = model.tokenizer](OnToken on_token) {
    EngineOptions engine = engine_options(o);
    if (tokenizer) engine.append_token = append_token_of(*tokenizer);
    engine.on_token = std::move(on_token);
    log_info("serve: states may take ", engine.state_bytes >> 20, " MiB");
    return std::make_unique<Engine>(execution.context(), weights, engine);
  };
  EngineServer server(make_engine, std::move(model), options);
  log_info("serve: http://", server.address());
  run_until_signal(signals, server, o.serve.drain_timeout);
  return 0;
}

RoutingPolicyKind policy_of(config::RoutingPolicy policy) {
  switch (policy) {
    case config::RoutingPolicy::kCacheAware:
      return RoutingPolicyKind::kCacheAware;
    case config::RoutingPolicy::kRoundRobin:
      return RoutingPolicyKind::kRoundRobin;
    case config::RoutingPolicy::kLeastLoaded:
      return RoutingPolicyKind::kLeastLoaded;
    case config::RoutingPolicy::kSticky:
      return RoutingPolicyKind::kSticky;
  }
  return RoutingPolicyKind::kCacheAware;
}

int serve_router(const config::ServeOptions& o, const StopSignals& signals) {
  RouterOptions options;
  options.http = http_options(o);
  options.api_key = o.api_key.value_or("");
  options.worker_api_key = o.worker_api_key.value_or("");
  options.worker_urls = o.worker_urls;
  options.policy = policy_of(o.policy);
  options.limits.health_failure_threshold = o.health_failure_threshold;
  options.limits.health_success_threshold = o.health_success_threshold;
  options.limits.breaker_failure_threshold = o.cb_failure_threshold;
  options.limits.breaker_timeout = std::chrono::seconds(o.cb_timeout);
  options.health_interval = std::chrono::seconds(o.health_check_interval);
  if (o.health_check_timeout) {
    options.health_timeout = std::chrono::seconds(*o.health_check_timeout);
  }
  options.request_timeout = std::chrono::seconds(o.request_timeout);
  options.max_retries = o.retry_max_retries;
  Router router(std::move(options));
  log_info("router: http://", router.address());
  run_until_signal(signals, router, o.drain_timeout);
  return 0;
}

}  // namespace

int run_serve(const config::ParsedCommand& command) {
  const StopSignals signals;
  return command.options.serve.router ? serve_router(command.options.serve, signals)
                                      : serve_checkpoint(command.options, signals);
}

}  // namespace fathom
