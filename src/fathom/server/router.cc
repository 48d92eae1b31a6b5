#include "fathom/server/router.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <thread>

#include "fathom/base/log.h"
#include "fathom/server/api.h"
#include "fathom/server/json_fields.h"

namespace fathom {
namespace {

constexpr std::string_view kWorkersPath = "/workers";

/// Endpoints that concern every engine.
bool is_for_all(const std::string& path) {
  static constexpr std::string_view kPaths[] = {"/flush_cache",
                                                "/abort_request",
                                                "/pause_generation",
                                                "/continue_generation",
                                                "/update_weight_version",
                                                "/update_weights_from_disk",
                                                "/weights_checker",
                                                "/release_memory_occupation",
                                                "/resume_memory_occupation"};
  return std::find(std::begin(kPaths), std::end(kPaths), path) != std::end(kPaths);
}

}  // namespace

Router::Router(RouterOptions options)
    : options_(std::move(options)),
      page_({}),
      num_forwarded_(page_.counter("smg_requests_total", "Requests answered by a worker.")),
      num_retries_(page_.counter("smg_retries_total", "Attempts after the first.")),
      num_unserved_(
          page_.counter("smg_unserved_requests_total", "Requests that no worker answered.")),
      policy_(options_.policy) {
  for (const std::string& url : options_.worker_urls) parse_url(url);
  options_.http.num_threads = 1;
  http_ = std::make_unique<HttpServer>(
      options_.http,
      [this](const HttpRequest& request, HttpReply& reply) { return handle(request, reply); });
  asio::post(http_->executor(), [this] {
    for (const std::string& url : options_.worker_urls) add_worker(url);
  });
}

Router::~Router() {
  http_->stop();
  // Connections may not outlive what they run on.
  for (const auto& [id, worker] : workers_) worker->drop_connections();
  http_.reset();
}

void Router::begin_drain() {
  is_draining_ = true;
  http_->begin_drain();
}

void Router::drain(std::chrono::milliseconds patience) {
  begin_drain();
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!is_idle() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  http_->end_drain();
}

std::shared_ptr<Worker> Router::add_worker(const std::string& text) {
  const Url url = parse_url(text);
  for (const auto& [id, worker] : workers_) {
    if (worker->url().text() == url.text()) return worker;
  }
  char id[32];
  std::snprintf(id, sizeof id, "w%06lld", static_cast<long long>(next_worker_++));
  const auto worker = std::make_shared<Worker>(id, url, options_.limits);
  workers_[id] = worker;
  asio::co_spawn(http_->executor(), watch_health(worker), asio::detached);
  return worker;
}

bool Router::remove_worker(const std::string& id_or_url) {
  return std::erase_if(workers_, [&](const auto& entry) {
           return entry.first == id_or_url || entry.second->url().text() == id_or_url;
         }) > 0;
}

asio::awaitable<void> Router::watch_health(std::shared_ptr<Worker> worker) {
  asio::steady_timer timer(http_->executor());
  for (;;) {
    const bool is_good = co_await check_health(worker);
    const auto found = workers_.find(worker->id());
    if (found == workers_.end()) co_return;
    const bool was_healthy = worker->is_healthy();
    if (is_good && !weight_version_.empty()) co_await ask_weight_version(worker);
    worker->note_check(is_good);
    if (was_healthy != worker->is_healthy()) {
      log_info("router: ", worker->url().text(),
               worker->is_healthy() ? " is healthy" : " is not healthy");
    }
    // One that is out, or has just failed, is looked at more often.
    const bool is_well = worker->is_healthy() && is_good && has_current_weights(*worker);
    timer.expires_after(is_well
                            ? options_.health_interval
                            : std::min(options_.health_interval, std::chrono::milliseconds(1000)));
    co_await timer.async_wait(asio::use_awaitable);
  }
}

asio::awaitable<bool> Router::check_health(std::shared_ptr<Worker> worker) {
  HttpRequest request;
  request.method = "GET";
  request.path = "/health";
  bool is_good = false;
  try {
    const HttpResponse response =
        co_await fetch(http_->executor(), worker->url(), request, options_.health_timeout);
    is_good = response.status == 200;
  } catch (const ConnectionError&) {
  }
  co_return is_good;
}

bool Router::has_current_weights(const Worker& worker) const {
  return weight_version_.empty() || worker.weight_version() == weight_version_;
}

/// Empty when requests may go there.
std::string Router::why_unroutable(const Worker& worker) const {
  if (!worker.is_healthy()) return "its health checks fail";
  if (!has_current_weights(worker)) {
    const std::string& version = worker.weight_version();
    return str_cat("its weights are ", version.empty() ? "of a version it does not tell" : version,
                   ", those in use are ", weight_version_);
  }
  if (!worker.is_available(Worker::Clock::now())) return "its circuit breaker is not closed";
  return "";
}

/// A worker that does not tell keeps the version that it is known to have.
/// @return whether it answered at all.
asio::awaitable<bool> Router::ask_weight_version(std::shared_ptr<Worker> worker) {
  HttpRequest request;
  request.method = "GET";
  request.path = "/model_info";
  request = for_worker(request);
  const int64_t asked_at = worker->num_version_changes();
  try {
    const HttpResponse response =
        co_await fetch(http_->executor(), worker->url(), request, options_.health_timeout);
    if (response.status != 200) co_return true;
    const Json info = Json::parse(response.body, nullptr, false);
    if (!info.is_object()) co_return true;
    const auto version = info.find("weight_version");
    if (version == info.end() || !version->is_string()) co_return true;
    worker->note_weight_version(version->get<std::string>(), asked_at);
    co_return true;
  } catch (const ConnectionError&) {
  }
  co_return false;
}

/// After a control call to one worker: which weights it has now, and which count from now on.
asio::awaitable<void> Router::note_new_weights(const HttpRequest& request,
                                               std::shared_ptr<Worker> worker, int status) {
  const bool is_load = request.path == "/update_weights_from_disk";
  if (!is_load && request.path != "/update_weight_version") co_return;
  if (status < 300) {
    const Json body = Json::parse(request.body, nullptr, false);
    const char* key = is_load ? "weight_version" : "new_version";
    const auto version = body.is_object() ? body.find(key) : body.end();
    const bool is_named = body.is_object() && version != body.end() && version->is_string();
    worker->set_weight_version(is_named ? version->get<std::string>() : "");
    if (!is_named) co_await ask_weight_version(worker);
    if (!worker->weight_version().empty()) weight_version_ = worker->weight_version();
    co_return;
  }
  // Refused, or broken off who knows when.
  if (status >= 500) worker->set_weight_version("");
  co_await ask_weight_version(worker);
}

asio::awaitable<void> Router::handle(const HttpRequest& request, HttpReply& reply) {
  const bool is_health = request.path == "/health";
  if (!options_.api_key.empty()) {
    if (!is_health && !has_api_key(request, options_.api_key)) {
      throw HttpError(401, "the header Authorization: Bearer KEY is missing or has another key");
    }
  } else if (find_header(request.headers, "Origin") != nullptr) {
    throw HttpError(403, "requests of web pages need a router that was started with --api-key");
  }
  if (is_draining_) throw HttpError(503, "the router is shutting down");
  HttpResponse response;
  if (is_health) {
    response = health();
  } else if (request.path == "/metrics") {
    response = metrics();
  } else if (request.path == kWorkersPath || request.path.starts_with("/workers/")) {
    response = workers_endpoint(request);
  } else if (request.path == "/add_worker" || request.path == "/remove_worker" ||
             request.path == "/list_workers") {
    response = legacy_worker_endpoint(request);
  } else if (is_for_all(request.path)) {
    co_await broadcast(request, reply);
    co_return;
  } else {
    co_await forward(request, reply);
    co_return;
  }
  co_await reply.send(std::move(response));
}

Json Router::worker_json(const Worker& worker) const {
  const std::string reason = why_unroutable(worker);
  const std::string& version = worker.weight_version();
  return {{"id", worker.id()},
          {"url", worker.url().text()},
          {"worker_type", "regular"},
          {"is_healthy", worker.is_healthy()},
          {"is_routable", reason.empty()},
          {"reason", reason.empty() ? Json(nullptr) : Json(reason)},
          {"weight_version", version.empty() ? Json(nullptr) : Json(version)},
          {"load", worker.load()},
          {"requests", worker.num_requests()},
          {"circuit_breaker", breaker_state_name(worker.breaker(Worker::Clock::now()))}};
}

HttpResponse Router::workers_endpoint(const HttpRequest& request) {
  if (request.path == kWorkersPath && request.method == "GET") {
    Json list = Json::array();
    int64_t num_healthy = 0;
    for (const auto& [id, worker] : workers_) {
      list.push_back(worker_json(*worker));
      num_healthy += worker->is_healthy();
    }
    return json_response(
        {{"workers", list},
         {"total", workers_.size()},
         {"weight_version", weight_version_.empty() ? Json(nullptr) : Json(weight_version_)},
         {"stats", {{"healthy", num_healthy}}}});
  }
  if (request.path == kWorkersPath && request.method == "POST") {
    const Json body = parse_body(request.body);
    JsonFields fields(body, "");
    const std::string url = fields.text("url", "");
    const std::string type = fields.text("worker_type", "regular");
    fields.refuse({"bootstrap_port"}, "prefill and decode on different servers are not built");
    fields.refuse({"api_key"}, "workers have one key, --worker-api-key");
    fields.ignore({"model_id", "priority", "cost", "labels", "runtime"});
    fields.refuse_unknown();
    if (type != "regular") fields.fail("worker_type", "regular is expected", Json(type));
    try {
      return json_response(worker_json(*add_worker(url)), 202);
    } catch (const UserError& e) {
      throw HttpError(400, e.what(), "url");
    }
  }
  const std::string name =
      url_decode(std::string_view(request.path)
                     .substr(std::min(kWorkersPath.size() + 1, request.path.size())))
          .value_or("");
  for (const auto& [id, worker] : workers_) {
    if (id != name && worker->url().text() != name) continue;
    const Json json = worker_json(*worker);
    if (request.method == "DELETE") {
      remove_worker(id);
      return json_response(json, 202);
    }
    if (request.method == "GET") return json_response(json);
    break;
  }
  if (request.path == kWorkersPath || (request.method != "GET" && request.method != "DELETE")) {
    throw HttpError(405, "/workers takes GET and POST, /workers/ID takes GET and DELETE");
  }
  throw HttpError(404, str_cat("there is no worker '", name.substr(0, 200), "'"));
}

HttpResponse Router::legacy_worker_endpoint(const HttpRequest& request) {
  if (request.path == "/list_workers") {
    Json urls = Json::array();
    for (const auto& [id, worker] : workers_) urls.push_back(worker->url().text());
    return json_response({{"urls", std::move(urls)}});
  }
  if (request.method != "POST") throw HttpError(405, request.path + " takes POST");
  const std::string url = request.query_value("url").value_or("");
  try {
    if (request.path == "/add_worker") {
      add_worker(url);
      return text_response("Successfully added worker: " + url);
    }
    if (!remove_worker(parse_url(url).text()))
      throw HttpError(404, "there is no worker " + url, "url");
    return text_response("Successfully removed worker: " + url);
  } catch (const UserError& e) {
    throw HttpError(400, e.what(), "url");
  }
}

HttpResponse Router::health() const {
  for (const auto& [id, worker] : workers_) {
    if (worker->is_healthy() && has_current_weights(*worker)) return text_response("");
  }
  throw HttpError(503, "no worker is healthy and has the weights in use");
}

HttpResponse Router::metrics() {
  std::string text = page_.text();
  const auto add = [&](const char* name, const char* help, auto&& value_of) {
    text += str_cat("# HELP ", name, " ", help, "\n# TYPE ", name, " gauge\n");
    for (const auto& [id, worker] : workers_) {
      text += str_cat(name, "{worker=\"", worker->url().text(), "\"} ", value_of(*worker), "\n");
    }
  };
  const auto now = Worker::Clock::now();
  add("smg_worker_health", "1: healthy.", [](const Worker& w) { return w.is_healthy() ? 1 : 0; });
  add("smg_worker_load", "Samples under way.", [](const Worker& w) { return w.load(); });
  add("smg_worker_requests", "Requests sent there.",
      [](const Worker& w) { return w.num_requests(); });
  add("smg_worker_cb_state", "Circuit breaker. 0: closed, 1: open, 2: half open.",
      [&](const Worker& w) { return static_cast<int>(w.breaker(now)); });
  HttpResponse response = text_response(std::move(text));
  response.content_type = std::string(MetricsPage::kContentType);
  return response;
}

asio::awaitable<void> Router::broadcast(const HttpRequest& request, HttpReply& reply) {
  WorkerList all;
  for (const auto& [id, worker] : workers_) all.push_back(worker);
  if (all.empty()) throw HttpError(503, "there is no worker");
  HttpResponse first_bad;
  first_bad.status = 0;
  HttpResponse last_good;
  for (const std::shared_ptr<Worker>& worker : all) {
    HttpResponse response;
    const HttpRequest copy = for_worker(request);
    try {
      response = co_await fetch(reply.executor(), worker->url(), copy, options_.request_timeout);
    } catch (const ConnectionError& e) {
      response = error_response(502, e.what());
    }
    co_await note_new_weights(request, worker, response.status);
    if (response.status < 300) {
      last_good = std::move(response);
    } else if (first_bad.status == 0) {
      first_bad = std::move(response);
    }
  }
  HttpResponse answer = first_bad.status != 0 ? std::move(first_bad) : std::move(last_good);
  answer.headers.clear();
  co_await reply.send(std::move(answer));
}

}  // namespace fathom
