// A request's way to a worker and its answer's way back.
#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>
#include <random>

#include "fathom/base/log.h"
#include "fathom/server/event.h"
#include "fathom/server/router.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

constexpr int64_t kMaxBufferedBytes = int64_t{1} << 30;

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::any_of(names.begin(), names.end(), [&](std::string_view other) {
    return std::equal(name.begin(), name.end(), other.begin(), other.end(), [](char a, char b) {
      return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b;
    });
  });
}

/// Headers of one connection, not of the request.
bool is_hop_by_hop(std::string_view name) {
  return is_one_of(name, {"connection", "keep-alive", "proxy-connection", "te", "trailer",
                          "transfer-encoding", "upgrade", "expect", "content-length", "host"});
}

/// Whether another worker may do better. 501 and 504 would only come again.
bool is_worth_a_retry(int status) {
  return status == 408 || status == 429 || (status >= 500 && status != 501 && status != 504);
}

int64_t samples_of(const Json& body) {
  const auto number = [](const Json& object, const char* key) -> int64_t {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_unsigned() && found->get<uint64_t>() < 4096
               ? std::max<int64_t>(1, found->get<int64_t>())
               : 1;
  };
  int64_t n = number(body, "n");
  const auto params = body.find("sampling_params");
  if (params != body.end() && params->is_object()) n = number(*params, "n");
  for (const char* key : {"text", "input_ids", "prompt"}) {
    const auto found = body.find(key);
    if (found == body.end() || !found->is_array() || found->empty()) continue;
    if (!found->front().is_number()) n *= static_cast<int64_t>(found->size());
  }
  return n;
}

/// What prompts are compared by: token ids as bytes, text as it is, messages as JSON.
std::string prompt_of(const Json& body) {
  const auto of_value = [](const Json& value) -> std::string {
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_array()) return "";
    std::string out;
    for (const Json& id : value) {
      if (!id.is_number_integer()) return "";
      const auto word = static_cast<uint32_t>(id.get<int64_t>());
      out.append(reinterpret_cast<const char*>(&word), sizeof word);
    }
    return out;
  };
  for (const char* key : {"input_ids", "text", "prompt"}) {
    const auto found = body.find(key);
    if (found == body.end() || found->is_null()) continue;
    const bool is_list = found->is_array() && !found->empty() && !found->front().is_number();
    return of_value(is_list ? found->front() : *found);
  }
  const auto messages = body.find("messages");
  return messages == body.end() ? "" : dump_python_json(*messages);
}

}  // namespace

struct Router::Forwarding {
  const HttpRequest& request;
  HttpReply& reply;
  RoutedRequest routed;
  std::chrono::steady_clock::time_point deadline;
  std::string problem;  // of the last attempt
};

HttpRequest Router::for_worker(const HttpRequest& request) const {
  HttpRequest out = request;
  const bool has_key = !options_.worker_api_key.empty();
  std::erase_if(out.headers, [&](const auto& header) {
    return is_hop_by_hop(header.first) || (has_key && is_one_of(header.first, {"authorization"}));
  });
  if (has_key) out.headers.emplace_back("Authorization", "Bearer " + options_.worker_api_key);
  return out;
}

RoutedRequest Router::routed(const HttpRequest& request) const {
  RoutedRequest out;
  if (const std::string* key = find_header(request.headers, "X-SMG-Routing-Key")) {
    out.routing_key = *key;
  }
  if (request.body.empty() || options_.policy == RoutingPolicyKind::kRoundRobin) return out;
  try {
    const Json body = parse_python_json(request.body, "body");
    if (!body.is_object()) return out;
    out.num_samples = samples_of(body);
    if (options_.policy == RoutingPolicyKind::kCacheAware) out.prompt = prompt_of(body);
    const auto key = body.find("routing_key");
    if (out.routing_key.empty() && key != body.end() && key->is_string()) {
      out.routing_key = key->get<std::string>();
    }
  } catch (const UserError&) {
    // The worker says what is wrong with it.
  }
  return out;
}

WorkerList Router::available(const WorkerList& except) const {
  const auto now = Worker::Clock::now();
  WorkerList out;
  for (const auto& [id, worker] : workers_) {
    const bool was_tried = std::find(except.begin(), except.end(), worker) != except.end();
    if (!was_tried && worker->is_available(now) && has_current_weights(*worker)) {
      out.push_back(worker);
    }
  }
  return out;
}

asio::awaitable<void> Router::forward(const HttpRequest& request, HttpReply& reply) {
  Forwarding f{request, reply, routed(request),
               std::chrono::steady_clock::now() + options_.request_timeout, ""};
  std::mt19937 random(std::random_device{}());
  const Event tick(reply.executor());
  WorkerList tried;
  double backoff = static_cast<double>(options_.initial_backoff.count());
  for (int64_t retry = 0; retry <= options_.max_retries; ++retry) {
    WorkerList candidates = available(tried);
    if (retry > 0 && candidates.empty()) {
      // Everybody has failed once. Somebody may be back after a while.
      std::uniform_real_distribution<double> jitter(1 - options_.backoff_jitter,
                                                    1 + options_.backoff_jitter);
      const double time = backoff * jitter(random);
      co_await tick.wait_for(std::chrono::microseconds(static_cast<int64_t>(time * 1000)));
      backoff = std::min(backoff * options_.backoff_multiplier,
                         static_cast<double>(options_.max_backoff.count()));
      tried.clear();
      candidates = available(tried);
    }
    if (reply.client_gone()) throw ClientGone();
    if (candidates.empty()) {
      if (f.problem.empty()) f.problem = "no worker is healthy and has the weights in use";
      continue;
    }
    if (retry > 0) num_retries_.add(1);
    const std::shared_ptr<Worker> worker =
        policy_.choose(candidates, f.routed, retry > 0, Worker::Clock::now());
    tried.push_back(worker);
    const bool is_answered = co_await attempt(f, worker, retry == options_.max_retries);
    if (is_answered) {
      num_forwarded_.add(1);
      co_return;
    }
    log_info("router: ", f.problem);
  }
  num_unserved_.add(1);
  throw HttpError(503, str_cat("no worker could answer: ", f.problem));
}

/// @return false when nothing was sent to the client and another attempt may follow.
asio::awaitable<bool> Router::attempt(Forwarding& f, std::shared_ptr<Worker> worker, bool is_last) {
  struct UnderWay {
    UnderWay(Worker& w, int64_t count) : worker(w), n(count) { worker.begin(n); }
    ~UnderWay() { worker.end(n); }
    Worker& worker;
    int64_t n;
  };
  const UnderWay under_way(*worker, f.routed.num_samples);
  const auto left = [&] { return f.deadline - std::chrono::steady_clock::now(); };
  auto client = std::make_unique<HttpClient>(f.reply.executor(), worker->url());
  // The answer's connection is closed when the client goes, so that the worker stops working.
  f.reply.on_client_gone([c = client.get()] { c->cancel(); });
  struct Unwatch {
    ~Unwatch() { reply.on_client_gone(nullptr); }
    HttpReply& reply;
  };
  const Unwatch unwatch{f.reply};

  try {
    HttpResponse response = co_await exchange(f, worker, &client);
    const bool is_bad = is_worth_a_retry(response.status);
    if (is_bad && !is_last) {
      worker->note_result(false, Worker::Clock::now());
      f.problem = str_cat(worker->url().text(), " answered ", response.status);
      co_return false;
    }
    std::erase_if(response.headers, [](const auto& header) { return is_hop_by_hop(header.first); });
    if (response.content_type.starts_with("text/event-stream")) {
      co_await f.reply.start(std::move(response));
      for (;;) {
        std::string piece = co_await client->read_some(left());
        if (piece.empty()) break;
        co_await f.reply.write(std::move(piece));
      }
      co_await f.reply.end();
    } else {
      for (;;) {
        const std::string piece = co_await client->read_some(left());
        if (piece.empty()) break;
        response.body += piece;
        if (static_cast<int64_t>(response.body.size()) > kMaxBufferedBytes) {
          throw HttpError(502, "the worker's answer is too long");
        }
      }
      co_await f.reply.send(std::move(response));
    }
    worker->note_result(!is_bad, Worker::Clock::now());
    if (client->is_reusable()) worker->keep_connection(std::move(*client));
    co_return true;
  } catch (const ConnectionError& e) {
    if (f.reply.client_gone()) throw ClientGone();
    worker->note_result(false, Worker::Clock::now());
    f.problem = e.what();
    if (f.reply.has_started()) throw;  // the client sees the connection break
    if (left() <= std::chrono::seconds(0)) throw HttpError(504, "the request took too long");
  }
  co_return false;
}

/// Sends the request and reads the head of the answer, over a spare connection if one still works.
asio::awaitable<HttpResponse> Router::exchange(Forwarding& f, std::shared_ptr<Worker> to,
                                               std::unique_ptr<HttpClient>* client) {
  Worker& worker = *to;
  const auto left = [&] { return f.deadline - std::chrono::steady_clock::now(); };
  const HttpRequest request = for_worker(f.request);
  if (std::optional<HttpClient> spare = worker.take_connection()) {
    **client = std::move(*spare);
    bool is_stale = false;
    HttpResponse head;
    try {
      co_await (*client)->send(request, left());
      head = co_await (*client)->read_head(left());
    } catch (const ConnectionError&) {
      // Closed while it was idle, most likely; a new connection shows whether anybody is there.
      is_stale = true;
    }
    if (!is_stale) co_return head;
    if (f.reply.client_gone()) throw ClientGone();
    **client = HttpClient(f.reply.executor(), worker.url());
  }
  // Another process may listen there by now, with the weights that it was started with.
  if (!weight_version_.empty()) {
    const bool has_answered = co_await ask_weight_version(to);
    if (!has_answered && !f.reply.client_gone()) worker.note_unreachable();
    if (!has_current_weights(worker)) {
      throw ConnectionError(str_cat(worker.url().text(), ": ", why_unroutable(worker)));
    }
  }
  bool is_reached = false;
  std::string problem;
  try {
    co_await (*client)->connect(std::min<HttpClient::Duration>(options_.connect_timeout, left()));
    is_reached = true;
  } catch (const ConnectionError& e) {
    problem = e.what();
  }
  if (!is_reached) {
    if (!f.reply.client_gone()) worker.note_unreachable();
    throw ConnectionError(problem);
  }
  co_await (*client)->send(request, left());
  HttpResponse head = co_await (*client)->read_head(left());
  co_return head;
}

}  // namespace fathom
