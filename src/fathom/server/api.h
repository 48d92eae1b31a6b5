// The endpoints of one engine: SGLang's native ones and OpenAI's, on an EngineService.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <functional>
#include <string>

#include "fathom/model/weights.h"
#include "fathom/server/answer_stream.h"
#include "fathom/server/engine_service.h"
#include "fathom/server/http_server.h"
#include "fathom/server/served_model.h"

namespace fathom {

struct ApiOptions {
  std::string api_key;              // empty: everybody who can connect may ask
  bool incremental_stream = false;  // events of /generate carry what is new, not everything so far
  std::chrono::seconds request_timeout{14'400};
  std::chrono::seconds health_timeout{20};
  Json server_args = Json::object();  // told by /server_info
  std::string version;                // of the program
  const Weights* weights = nullptr;   // read by weight endpoints, on the engine's thread
  /// Puts the weights of a checkpoint directory in place of the served ones. Null: not offered.
  std::function<void(const std::string& directory)> load_weights;
  /// Gives the memory of the weights back, and makes them as they were. Null: not offered.
  std::function<void()> release_weights, restore_weights;
};

class Api {
 public:
  /// All must outlive the HTTP server that calls handle().
  Api(EngineService& service, const ServedModel& model, EngineMetrics& metrics, ApiOptions options);

  asio::awaitable<void> handle(const HttpRequest& request, HttpReply& reply);

  /// Waits for the endpoints that wait for the engine. No call of handle() may come after it.
  void stop() { waiting_.join(); }

  /// From now on health checks fail, so that routers look elsewhere, and new requests are refused.
  void begin_drain() { is_draining_ = true; }

 private:
  using Endpoint = asio::awaitable<void> (Api::*)(const HttpRequest&, HttpReply&);
  using QuickEndpoint = HttpResponse (Api::*)(const HttpRequest&);
  struct Route;
  static const Route* find_route(const HttpRequest& request);
  asio::awaitable<HttpResponse> wait_for(QuickEndpoint endpoint, const HttpRequest& request,
                                         HttpReply& reply);

  // generate_endpoint.cc
  asio::awaitable<void> generate(const HttpRequest& request, HttpReply& reply);
  asio::awaitable<void> health_generate(const HttpRequest& request, HttpReply& reply);

  // openai_endpoint.cc
  asio::awaitable<void> completions(const HttpRequest& request, HttpReply& reply);
  asio::awaitable<void> chat_completions(const HttpRequest& request, HttpReply& reply);

  // info_endpoints.cc
  HttpResponse health(const HttpRequest& request);
  HttpResponse model_info(const HttpRequest& request);
  HttpResponse server_info(const HttpRequest& request);
  HttpResponse loads(const HttpRequest& request);
  HttpResponse models(const HttpRequest& request);
  HttpResponse weight_version(const HttpRequest& request);
  HttpResponse metrics(const HttpRequest& request);
  HttpResponse tokenize(const HttpRequest& request);
  HttpResponse detokenize(const HttpRequest& request);

  // control_endpoints.cc
  HttpResponse flush_cache(const HttpRequest& request);
  HttpResponse abort_request(const HttpRequest& request);
  HttpResponse pause_generation(const HttpRequest& request);
  HttpResponse continue_generation(const HttpRequest& request);
  HttpResponse release_memory(const HttpRequest& request);
  HttpResponse resume_memory(const HttpRequest& request);
  HttpResponse update_weight_version(const HttpRequest& request);
  HttpResponse update_weights_from_disk(const HttpRequest& request);
  HttpResponse get_weights_by_name(const HttpRequest& request);
  HttpResponse weights_checker(const HttpRequest& request);
  HttpResponse carries_pickles(const HttpRequest& request);
  HttpResponse needs_collectives(const HttpRequest& request);
  HttpResponse not_built(const HttpRequest& request);

  EngineService& service_;
  const ServedModel& model_;
  EngineMetrics& metrics_;
  ApiOptions options_;
  std::atomic<bool> is_draining_ = false;
  asio::thread_pool waiting_;  // one thread, for endpoints that wait for the engine's thread
  std::vector<std::pair<std::string, std::string>> weight_snapshot_;  // name, hash; engine's thread
  bool states_are_away_ = false, weights_are_away_ = false;           // engine's thread
};

/// Whether a request carries the key, compared in constant time.
bool has_api_key(const HttpRequest& request, const std::string& api_key);

/// One server-sent event.
std::string sse_event(const Json& json);
inline constexpr const char* kSseDone = "data: [DONE]\n\n";
inline constexpr const char* kSseContentType = "text/event-stream; charset=utf-8";

}  // namespace fathom
