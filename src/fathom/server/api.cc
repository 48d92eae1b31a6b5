#include "fathom/server/api.h"

#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/string.hpp>
#include <exception>
#include <memory>
#include <string_view>

#include "fathom/base/hash.h"

namespace fathom {

struct Api::Route {
  std::string_view path;
  std::string_view methods;  // "GET POST"
  Endpoint endpoint = nullptr;
  QuickEndpoint quick = nullptr;  // answers by itself
  bool waits = false;             // for the engine's thread
};

const Api::Route* Api::find_route(const HttpRequest& request) {
  static const auto kRoutes = std::to_array<Route>({
      {"/generate", "POST PUT", &Api::generate, nullptr},
      {"/v1/completions", "POST", &Api::completions, nullptr},
      {"/v1/chat/completions", "POST", &Api::chat_completions, nullptr},
      {"/health_generate", "GET", &Api::health_generate, nullptr},
      {"/health", "GET", nullptr, &Api::health},
      {"/model_info", "GET", nullptr, &Api::model_info},
      {"/get_model_info", "GET", nullptr, &Api::model_info},
      {"/server_info", "GET", nullptr, &Api::server_info},
      {"/get_server_info", "GET", nullptr, &Api::server_info},
      {"/weight_version", "GET", nullptr, &Api::weight_version},
      {"/get_weight_version", "GET", nullptr, &Api::weight_version},
      {"/v1/loads", "GET", nullptr, &Api::loads},
      {"/get_load", "GET", nullptr, &Api::loads},
      {"/v1/models", "GET", nullptr, &Api::models},
      {"/metrics", "GET", nullptr, &Api::metrics},
      {"/tokenize", "POST", nullptr, &Api::tokenize},
      {"/v1/tokenize", "POST", nullptr, &Api::tokenize},
      {"/detokenize", "POST", nullptr, &Api::detokenize},
      {"/v1/detokenize", "POST", nullptr, &Api::detokenize},
      {"/flush_cache", "GET POST", nullptr, &Api::flush_cache, true},
      {"/abort_request", "POST", nullptr, &Api::abort_request},
      {"/pause_generation", "POST", nullptr, &Api::pause_generation, true},
      {"/continue_generation", "POST", nullptr, &Api::continue_generation, true},
      {"/release_memory_occupation", "POST", nullptr, &Api::release_memory, true},
      {"/resume_memory_occupation", "POST", nullptr, &Api::resume_memory, true},
      {"/update_weight_version", "POST", nullptr, &Api::update_weight_version, true},
      {"/update_weights_from_disk", "POST", nullptr, &Api::update_weights_from_disk, true},
      {"/get_weights_by_name", "GET POST", nullptr, &Api::get_weights_by_name, true},
      {"/weights_checker", "POST", nullptr, &Api::weights_checker, true},
      {"/update_weights_from_tensor", "POST", nullptr, &Api::carries_pickles},
      {"/update_weights_from_ipc", "POST", nullptr, &Api::carries_pickles},
      {"/init_weights_update_group", "POST", nullptr, &Api::needs_collectives},
      {"/destroy_weights_update_group", "POST", nullptr, &Api::needs_collectives},
      {"/update_weights_from_distributed", "POST", nullptr, &Api::needs_collectives},
      {"/begin_weight_update", "POST", nullptr, &Api::needs_collectives},
      {"/end_weight_update", "POST", nullptr, &Api::needs_collectives},
      {"/pull_weights", "POST", nullptr, &Api::needs_collectives},
      {"/parallelism_config", "GET", nullptr, &Api::needs_collectives},
      {"/get_remote_instance_transfer_engine_info", "GET", nullptr, &Api::needs_collectives},
      {"/start_profile", "POST", nullptr, &Api::not_built},
      {"/stop_profile", "POST", nullptr, &Api::not_built},
  });
  constexpr std::string_view kModels = "/v1/models";
  const bool is_one_model =
      request.path.starts_with(kModels) && request.path.substr(kModels.size()).starts_with("/");
  const std::string_view path = is_one_model ? kModels : std::string_view(request.path);
  for (const Route& route : kRoutes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

Api::Api(EngineService& service, const ServedModel& model, EngineMetrics& metrics,
         ApiOptions options)
    : service_(service),
      model_(model),
      metrics_(metrics),
      options_(std::move(options)),
      waiting_(1) {
  metrics.context_len.set(static_cast<double>(model.config.max_position_embeddings));
}

asio::awaitable<void> Api::handle(const HttpRequest& request, HttpReply& reply) {
  const Route* route = find_route(request);
  if (route == nullptr) {
    throw HttpError(404, str_cat("there is no ", request.path.substr(0, 200)));
  }
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  if (route->methods.find(method) == std::string_view::npos) {
    throw HttpError(405, str_cat(request.path, " takes ", route->methods, ", not ",
                                 request.method.substr(0, 20)));
  }
  const bool is_health = request.path.starts_with("/health");
  if (!options_.api_key.empty()) {
    if (!is_health && !has_api_key(request, options_.api_key)) {
      throw HttpError(401, "the header Authorization: Bearer KEY is missing or has another key");
    }
  } else if (find_header(request.headers, "Origin") != nullptr) {
    // A web page that the user happens to look at may reach a loopback address too.
    throw HttpError(403, "requests of web pages need a server that was started with --api-key");
  }
  if (is_draining_ && (is_health || route->endpoint != nullptr)) {
    throw HttpError(503, "the server is shutting down");
  }
  if (route->endpoint != nullptr) {
    co_await (this->*route->endpoint)(request, reply);
  } else if (route->waits) {
    HttpResponse response = co_await wait_for(route->quick, request, reply);
    co_await reply.send(std::move(response));
  } else {
    HttpResponse response = (this->*route->quick)(request);
    co_await reply.send(std::move(response));
  }
}

asio::awaitable<HttpResponse> Api::wait_for(QuickEndpoint endpoint, const HttpRequest& request,
                                            HttpReply& reply) {
  struct Result {
    HttpResponse response;
    std::exception_ptr error;
    std::atomic<bool> is_done = false;
  };
  const auto result = std::make_shared<Result>();
  const Event done(reply.executor());
  asio::post(waiting_, [this, endpoint, result, done, copy = request] {
    try {
      result->response = (this->*endpoint)(copy);
    } catch (...) {
      result->error = std::current_exception();
    }
    result->is_done = true;
    done.notify();
  });
  while (!result->is_done) co_await done.wait();
  if (result->error) std::rethrow_exception(result->error);
  co_return std::move(result->response);
}

bool has_api_key(const HttpRequest& request, const std::string& api_key) {
  constexpr std::string_view kScheme = "Bearer ";
  const std::string* header = find_header(request.headers, "Authorization");
  // The scheme's name may be written in any case; the key may not.
  const bool has_scheme = header != nullptr && header->size() >= kScheme.size() &&
                          boost::beast::iequals(header->substr(0, kScheme.size()), kScheme);
  // Hashes have one length, and how far two of them agree says nothing of the keys.
  const std::string given = sha256_hex(has_scheme ? header->substr(kScheme.size()) : "");
  const std::string wanted = sha256_hex(api_key);
  unsigned difference = has_scheme ? 0 : 1;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference |= static_cast<unsigned>(given[i] ^ wanted[i]);
  }
  return difference == 0;
}

std::string sse_event(const Json& json) { return str_cat("data: ", dump_json(json), "\n\n"); }

}  // namespace fathom
