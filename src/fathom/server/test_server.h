// A server in this process, on a free port of loopback, and a client for it: what tests of the
// endpoints share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fathom/rollout/generate.h"
#include "fathom/server/raw_socket.h"
#include "fathom/server/scripted_model.h"
#include "fathom/server/server.h"

namespace fathom {

struct Reply {
  int status = 0;
  std::string head, body;
  Json json() const { return Json::parse(body); }
  Json error() const { return json().at("error"); }
};

/// A request with a connection of its own.
inline Reply ask(int port, const std::string& method, const std::string& path,
                 const std::string& body = "", const std::string& headers = "") {
  RawSocket socket(port);
  socket.send(str_cat(method, " ", path, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", headers,
                      "Content-Length: ", body.size(), "\r\n\r\n", body));
  const std::string all = socket.read_all(60'000);
  const size_t end = all.find("\r\n\r\n");
  Reply reply{status_of(all), all.substr(0, end), body_of(all)};
  if (reply.head.find("chunked") == std::string::npos) return reply;
  std::string text, rest = reply.body;
  for (;;) {
    const size_t line = rest.find("\r\n");
    if (line == std::string::npos) break;
    const size_t size = std::stoul(rest.substr(0, line), nullptr, 16);
    if (size == 0) break;
    text += rest.substr(line + 2, size);
    rest.erase(0, line + 2 + size + 2);
  }
  reply.body = text;
  return reply;
}

/// The JSON of every event; the last one has to be [DONE], which is left out.
inline std::vector<Json> events_of(const Reply& reply) {
  std::vector<Json> events;
  bool is_done = false;
  for (size_t at = 0; at < reply.body.size();) {
    const size_t end = reply.body.find("\n\n", at);
    const std::string line = reply.body.substr(at, end - at);
    EXPECT_TRUE(line.starts_with("data: ")) << line;
    EXPECT_FALSE(is_done) << "something comes behind [DONE]";
    if (line == "data: [DONE]") {
      is_done = true;
    } else {
      events.push_back(Json::parse(line.substr(6)));
    }
    at = end + 2;
  }
  EXPECT_TRUE(is_done) << reply.body.substr(0, 500);
  return events;
}

class TestServer {
 public:
  struct Settings {
    int64_t max_running_requests = 8, chunked_prefill_size = 64;
    int64_t max_queued_requests = 100;
    std::string api_key = {};
    bool incremental_stream = false;
    std::chrono::seconds health_timeout{1};
    std::chrono::seconds request_timeout{60};
    HttpServerOptions http = {};
  };
  TestServer() : TestServer(Settings()) {}
  explicit TestServer(const Settings& settings, std::shared_ptr<Script> script = nullptr)
      : settings_(settings), script_(script ? script : std::make_shared<Script>()) {
    ServedModel model;
    model.config = scripted_model_config();
    model.tokenizer = tokenizer_;
    model.path = "/models/scripted";
    model.name = "scripted";
    model.next_seed = [count = std::make_shared<std::atomic<uint64_t>>(1000)] {
      return (*count)++;
    };
    ServerOptions options;
    options.http = settings.http;
    options.service.max_running_requests = settings.max_running_requests;
    options.service.max_queued_requests = settings.max_queued_requests;
    options.api.api_key = settings.api_key;
    options.api.incremental_stream = settings.incremental_stream;
    options.api.health_timeout = settings.health_timeout;
    options.api.request_timeout = settings.request_timeout;
    options.api.version = "test";
    server_ = std::make_unique<EngineServer>(
        [&](OnToken on_token) { return make_engine(std::move(on_token)); }, std::move(model),
        options);
  }

  std::unique_ptr<Engine> make_engine(OnToken on_token = nullptr) {
    EngineOptions options;
    options.max_running_requests = settings_.max_running_requests;
    options.chunked_prefill_size = settings_.chunked_prefill_size;
    options.append_token = append_token_of(*tokenizer_);
    options.on_token = std::move(on_token);
    return std::make_unique<Engine>(ctx_, scripted_model_config(),
                                    std::make_unique<ScriptedModel>(kByteVocab, script_), options);
  }

  Reply post(const std::string& path, const Json& body, const std::string& headers = "") const {
    return ask(port(), "POST", path, body.dump(), headers);
  }
  Reply get(const std::string& path, const std::string& headers = "") const {
    return ask(port(), "GET", path, "", headers);
  }
  int port() const { return server_->port(); }
  EngineServer& server() { return *server_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ExecContext& context() const { return ctx_; }
  /// To be changed while no request is under way.
  Script& script() { return *script_; }
  /// The value of a metric without labels of its own; -1 when it is not there.
  double metric(const std::string& name) const {
    const std::string page = get("/metrics").body;
    const size_t at = page.find("\n" + name + "{");
    if (at == std::string::npos) return -1;
    return std::stod(page.substr(page.find("} ", at) + 2));
  }
  template <typename Condition>
  static bool eventually(Condition&& condition) {
    for (int i = 0; i < 1000 && !condition(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return condition();
  }
  bool becomes_idle() {
    if (!eventually([&] { return server_->service().load().num_unfinished == 0; })) return false;
    // Runs before the engine's next step, so after the figures of the last one were published.
    server_->service().run([](Engine&) {});
    return true;
  }

 private:
  Settings settings_;
  ThreadPool pool_{1};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
  std::shared_ptr<const Tokenizer> tokenizer_ =
      std::make_shared<const Tokenizer>(make_byte_tokenizer());
  std::shared_ptr<Script> script_;
  std::unique_ptr<EngineServer> server_;
};

}  // namespace fathom
