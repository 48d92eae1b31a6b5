// Several engines behind one address. Requests go to one of the workers by a policy, and to another
// one when it fails before anything was answered; workers come and go while the router runs. Once a
// call through the router has changed weights, only workers with that weight version are asked.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <map>
#include <memory>
#include <string>

#include "fathom/server/http_server.h"
#include "fathom/server/metrics.h"
#include "fathom/server/routing_policy.h"

namespace fathom {

struct RouterOptions {
  HttpServerOptions http;      // num_threads is always 1
  std::string api_key;         // of the router's clients; empty: everybody who can connect may ask
  std::string worker_api_key;  // sent to the workers; empty: the client's own header is passed on
  std::vector<std::string> worker_urls;
  RoutingPolicyKind policy = RoutingPolicyKind::kCacheAware;
  WorkerLimits limits;
  std::chrono::milliseconds health_interval{15'000};
  std::chrono::milliseconds health_timeout{5'000};
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds request_timeout{14'400'000};
  int64_t max_retries = 5;
  std::chrono::milliseconds initial_backoff{50}, max_backoff{30'000};
  double backoff_multiplier = 1.5, backoff_jitter = 0.2;
};

class Router {
 public:
  /// Serves from now on. Errors: UserError for a bad worker address, or when it cannot listen.
  explicit Router(RouterOptions options);
  ~Router();

  int port() const { return http_->port(); }
  std::string address() const { return http_->address(); }

  void begin_drain();
  bool is_idle() const { return http_->num_active_requests() == 0; }
  void drain(std::chrono::milliseconds patience);

 private:
  struct Forwarding;

  // router.cc
  asio::awaitable<void> handle(const HttpRequest& request, HttpReply& reply);
  std::shared_ptr<Worker> add_worker(const std::string& url);
  bool remove_worker(const std::string& id_or_url);
  asio::awaitable<void> watch_health(std::shared_ptr<Worker> worker);
  asio::awaitable<bool> check_health(std::shared_ptr<Worker> worker);
  HttpResponse workers_endpoint(const HttpRequest& request);
  HttpResponse legacy_worker_endpoint(const HttpRequest& request);
  HttpResponse health() const;
  HttpResponse metrics();
  Json worker_json(const Worker& worker) const;
  bool has_current_weights(const Worker& worker) const;
  std::string why_unroutable(const Worker& worker) const;
  asio::awaitable<bool> ask_weight_version(std::shared_ptr<Worker> worker);
  asio::awaitable<void> note_new_weights(const HttpRequest& request, std::shared_ptr<Worker> worker,
                                         int status);
  asio::awaitable<void> broadcast(const HttpRequest& request, HttpReply& reply);

  // router_forward.cc
  asio::awaitable<void> forward(const HttpRequest& request, HttpReply& reply);
  asio::awaitable<bool> attempt(Forwarding& f, std::shared_ptr<Worker> worker, bool is_last);
  asio::awaitable<HttpResponse> exchange(Forwarding& f, std::shared_ptr<Worker> to,
                                         std::unique_ptr<HttpClient>* client);
  HttpRequest for_worker(const HttpRequest& request) const;
  RoutedRequest routed(const HttpRequest& request) const;
  WorkerList available(const WorkerList& except) const;

  RouterOptions options_;
  MetricsPage page_;
  MetricValue &num_forwarded_, &num_retries_, &num_unserved_;
  RoutingPolicy policy_;
  std::map<std::string, std::shared_ptr<Worker>> workers_;  // by id, in the order of adding
  int64_t next_worker_ = 0;
  std::string weight_version_;  // that workers have to have; empty: no call has changed weights yet
  std::atomic<bool> is_draining_ = false;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace fathom
