// The router in front of engines in this process: policies, failing workers, workers that come and
// go.
#include <gtest/gtest.h>

#include <future>
#include <set>

#include "fathom/server/router.h"
#include "fathom/server/test_server.h"

namespace fathom {
namespace {

using std::chrono::milliseconds;

RouterOptions quick_options() {
  RouterOptions o;
  o.health_interval = milliseconds(50);
  o.health_timeout = milliseconds(1000);
  o.connect_timeout = milliseconds(1000);
  o.limits.health_failure_threshold = 2;
  o.initial_backoff = milliseconds(5);
  return o;
}

std::string url_of(int port) { return str_cat("http://127.0.0.1:", port); }

Json request(const std::string& text, int64_t max_new_tokens = 5) {
  return {{"text", text},
          {"sampling_params",
           {{"max_new_tokens", max_new_tokens}, {"ignore_eos", true}, {"sampling_seed", 11}}}};
}

class RouterTest : public ::testing::Test {
 protected:
  /// Engines with the same script, whose answers are therefore the same, and a router for them.
  void start(size_t num_workers, RouterOptions options = quick_options()) {
    for (size_t i = 0; i < num_workers; ++i) {
      workers_.push_back(std::make_unique<TestServer>(settings_, script_));
      options.worker_urls.push_back(url_of(workers_.back()->port()));
    }
    router_ = std::make_unique<Router>(std::move(options));
    EXPECT_TRUE(has_healthy(num_workers));
  }
  bool has_healthy(size_t count) {
    return TestServer::eventually(
        [&] { return get("/workers").json()["stats"]["healthy"] == static_cast<int64_t>(count); });
  }
  Reply post(const std::string& path, const Json& body, const std::string& headers = "") {
    return ask(router_->port(), "POST", path, body.dump(), headers);
  }
  Reply get(const std::string& path) { return ask(router_->port(), "GET", path); }
  /// Prompts that each worker has answered.
  std::vector<int> num_answered() {
    std::vector<int> out;
    for (const auto& worker : workers_) {
      out.push_back(static_cast<int>(worker->metric("sglang:num_requests_total")));
    }
    return out;
  }

  TestServer::Settings settings_;
  std::shared_ptr<Script> script_ = std::make_shared<Script>();
  std::vector<std::unique_ptr<TestServer>> workers_;
  std::unique_ptr<Router> router_;
};

TEST_F(RouterTest, AnswersAreTheWorkersUnchanged) {
  start(1);
  const Json direct = workers_[0]->post("/generate", request("abc")).json();
  Reply routed = post("/generate", request("abc"));
  EXPECT_EQ(routed.status, 200);
  EXPECT_EQ(routed.json()["output_ids"], direct["output_ids"]);
  Json streamed = request("abc");
  streamed["stream"] = true;
  EXPECT_EQ(events_of(post("/generate", streamed)).back()["output_ids"], direct["output_ids"]);
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}}).status, 200);
  EXPECT_EQ(get("/v1/models").json()["data"][0]["id"], "scripted");
  const Reply bad = post("/generate", {{"text", 5}});
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(bad.error()["param"], "text");
  EXPECT_EQ(get("/nothing").status, 404);
  EXPECT_EQ(ask(router_->port(), "POST", "/generate", "{broken").status, 400);
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/health_generate").status, 200);
  EXPECT_EQ(post("/update_weights_from_tensor", Json::object()).status, 501);
}

TEST_F(RouterTest, RoundRobinTakesTurns) {
  RouterOptions options = quick_options();
  options.policy = RoutingPolicyKind::kRoundRobin;
  start(3, options);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(num_answered(), (std::vector<int>{3, 3, 3}));
}

TEST_F(RouterTest, LeastLoadedAvoidsTheBusy) {
  script_->delay = milliseconds(2);
  RouterOptions options = quick_options();
  options.policy = RoutingPolicyKind::kLeastLoaded;
  start(2, options);
  std::vector<std::future<Reply>> long_ones;
  for (int i = 0; i < 2; ++i) {
    long_ones.push_back(
        std::async(std::launch::async, [&] { return post("/generate", request("long", 800)); }));
  }
  EXPECT_TRUE(TestServer::eventually([&] {
    return workers_[0]->server().service().load().num_running == 1 &&
           workers_[1]->server().service().load().num_running == 1;
  })) << "one each";
  workers_[0]->post("/abort_request", {{"abort_all", true}});
  EXPECT_TRUE(
      TestServer::eventually([&] { return get("/workers").json()["workers"][0]["load"] == 0; }));
  for (int i = 0; i < 4; ++i) post("/generate", request("short"));
  EXPECT_EQ(workers_[0]->metric("sglang:num_requests_total"), 5);
  EXPECT_EQ(workers_[1]->metric("sglang:num_requests_total"), 0);
  workers_[1]->post("/abort_request", {{"abort_all", true}});
  for (auto& reply : long_ones) EXPECT_EQ(reply.get().status, 200);
}

TEST_F(RouterTest, CacheAwareSendsAPromptWhereItsBeginningIs) {
  start(3);
  std::vector<std::string> beginnings;
  for (char c : {'a', 'b', 'c', 'd', 'e', 'f'}) beginnings.push_back(std::string(200, c));
  const auto answered_by = [&](const Json& body) {
    const std::vector<int> before = num_answered();
    EXPECT_EQ(post("/generate", body).status, 200);
    const std::vector<int> after = num_answered();
    for (size_t i = 0; i < before.size(); ++i) {
      if (after[i] != before[i]) return i;
    }
    return size_t{99};
  };
  std::map<std::string, size_t> home;
  std::set<size_t> used;
  for (const std::string& beginning : beginnings) {
    home[beginning] = answered_by(request(beginning + " first"));
    used.insert(home[beginning]);
  }
  EXPECT_EQ(used.size(), 3u) << "new prompts are spread";
  for (int round = 0; round < 3; ++round) {
    for (const std::string& beginning : beginnings) {
      EXPECT_EQ(answered_by(request(str_cat(beginning, " other question ", round))),
                home[beginning]);
    }
  }
}

TEST_F(RouterTest, StickyKeepsAKeyAtItsWorker) {
  RouterOptions options = quick_options();
  options.policy = RoutingPolicyKind::kSticky;
  start(3, options);
  for (int round = 0; round < 4; ++round) {
    for (const char* key : {"k1", "k2", "k3"}) {
      EXPECT_EQ(post("/generate", request("x"), str_cat("X-SMG-Routing-Key: ", key, "\r\n")).status,
                200);
    }
  }
  EXPECT_EQ(num_answered(), (std::vector<int>{4, 4, 4}));
  Json by_body = request("x");
  by_body["routing_key"] = "k9";
  for (int i = 0; i < 3; ++i) post("/generate", by_body);
  std::vector<int> answered = num_answered();
  std::sort(answered.begin(), answered.end());
  EXPECT_EQ(answered, (std::vector<int>{4, 4, 7}));
}

TEST_F(RouterTest, NoRequestIsLostWhenAnEngineDies) {
  script_->delay = std::chrono::microseconds(500);
  start(3);
  const Json expected = workers_[0]->post("/generate", request("load", 60)).json()["output_ids"];
  std::atomic<int> num_good = 0, num_bad = 0;
  std::vector<std::future<void>> clients;
  for (int c = 0; c < 12; ++c) {
    clients.push_back(std::async(std::launch::async, [&] {
      for (int i = 0; i < 15; ++i) {
        const Reply reply = post("/generate", request("load", 60));
        (reply.status == 200 && reply.json()["output_ids"] == expected ? num_good : num_bad) += 1;
      }
    }));
  }
  EXPECT_TRUE(TestServer::eventually([&] { return num_good > 20; }));
  workers_[1].reset();
  for (auto& client : clients) client.get();
  EXPECT_EQ(num_bad, 0);
  EXPECT_EQ(num_good, 180);
  EXPECT_TRUE(has_healthy(2));
}

TEST_F(RouterTest, AStreamThatHasBegunIsNotRetried) {
  script_->delay = milliseconds(2);
  start(1);
  Json body = request("x", 2000);
  body["stream"] = true;
  const std::string text = body.dump();
  RawSocket socket(router_->port());
  socket.send(str_cat("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: ", text.size(),
                      "\r\n\r\n", text));
  EXPECT_NE(socket.read_until("output_ids").find("200 OK"), std::string::npos);
  workers_.clear();
  const std::string rest = socket.read_all();
  EXPECT_TRUE(socket.is_closed());
  EXPECT_EQ(rest.find("[DONE]"), std::string::npos) << "a broken stream must not look whole";
}

TEST_F(RouterTest, AClientThatLeavesStopsTheWorker) {
  script_->delay = milliseconds(2);
  start(1);
  {
    const std::string text = request("x", 3000).dump();
    RawSocket socket(router_->port());
    socket.send(str_cat("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: ", text.size(),
                        "\r\n\r\n", text));
    EXPECT_TRUE(TestServer::eventually(
        [&] { return workers_[0]->server().service().load().num_running == 1; }));
  }
  EXPECT_TRUE(workers_[0]->becomes_idle());
  const Json worker = get("/workers").json()["workers"][0];
  EXPECT_EQ(worker["load"], 0);
  EXPECT_EQ(worker["is_healthy"], true);
  EXPECT_EQ(worker["circuit_breaker"], "closed") << "it was not the worker's fault";
}

TEST_F(RouterTest, WorkersComeAndGo) {
  start(0);
  EXPECT_EQ(get("/health").status, 503);
  EXPECT_EQ(post("/generate", request("x")).status, 503);
  TestServer first, second;
  const Reply added = post("/workers", {{"url", url_of(first.port())}});
  EXPECT_EQ(added.status, 202);
  EXPECT_TRUE(has_healthy(1));
  EXPECT_EQ(post("/workers", {{"url", url_of(first.port())}}).json()["id"], added.json()["id"])
      << "twice is once";
  EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(ask(router_->port(), "POST", "/add_worker?url=" + url_of(second.port())).status, 200);
  EXPECT_TRUE(has_healthy(2));
  EXPECT_EQ(get("/list_workers").json()["urls"],
            Json({url_of(first.port()), url_of(second.port())}));
  const std::string id = added.json()["id"];
  EXPECT_EQ(get("/workers/" + id).json()["url"], url_of(first.port()));
  EXPECT_EQ(ask(router_->port(), "DELETE", "/workers/" + id).status, 202);
  EXPECT_EQ(ask(router_->port(), "DELETE", "/workers/" + id).status, 404);
  EXPECT_EQ(ask(router_->port(), "DELETE", "/workers/" + url_encode(url_of(second.port()))).status,
            202);
  EXPECT_EQ(get("/list_workers").json()["urls"], Json::array());
  EXPECT_EQ(ask(router_->port(), "POST", "/remove_worker?url=" + url_of(9)).status, 404);
  for (const Json& bad :
       {Json{{"url", "https://x:1"}}, Json{{"url", ""}}, Json{{"url", 5}},
        Json{{"url", "http://x:1"}, {"worker_type", "prefill"}}, Json{{"uri", "http://x:1"}}}) {
    EXPECT_EQ(post("/workers", bad).status, 400) << bad;
  }
  EXPECT_EQ(ask(router_->port(), "DELETE", "/workers").status, 405);
}

TEST_F(RouterTest, AWorkerThatComesBackIsUsedAgain) {
  RouterOptions options = quick_options();
  options.limits.health_success_threshold = 2;
  start(1, options);
  const int port = workers_[0]->port();
  workers_.clear();
  EXPECT_EQ(post("/generate", request("x")).status, 503);
  EXPECT_TRUE(has_healthy(0));
  HttpServerOptions again;
  again.port = port;
  std::atomic<int> num_checks = 0;
  HttpServer revived(again, [&](const HttpRequest& r, HttpReply& reply) -> asio::awaitable<void> {
    num_checks += r.path == "/health";
    HttpResponse response = text_response(r.path);
    co_await reply.send(std::move(response));
  });
  EXPECT_TRUE(has_healthy(1));
  EXPECT_GE(num_checks, 2);
  EXPECT_EQ(post("/generate", request("x")).body, "/generate");
}

/// A worker that answers what it is told to.
class FakeWorker {
 public:
  FakeWorker()
      : server_(HttpServerOptions(),
                [this](const HttpRequest& request, HttpReply& reply) -> asio::awaitable<void> {
                  HttpResponse response = text_response("");
                  if (request.path != "/health") {
                    ++num_requests;
                    response = text_response("fake", status);
                    last_headers = request.headers;
                    last_path = request.path + "?" + request.query;
                  }
                  co_await reply.send(std::move(response));
                }) {}
  int port() const { return server_.port(); }
  std::atomic<int> status = 200, num_requests = 0;
  HttpHeaders last_headers;
  std::string last_path;

 private:
  HttpServer server_;
};

TEST_F(RouterTest, FailuresAreRetriedElsewhereAndRefusalsAreNot) {
  FakeWorker bad, good;
  RouterOptions options = quick_options();
  options.policy = RoutingPolicyKind::kRoundRobin;
  options.worker_urls = {url_of(bad.port()), url_of(good.port())};
  router_ = std::make_unique<Router>(options);
  EXPECT_TRUE(has_healthy(2));
  for (const int status : {500, 502, 503, 429, 408}) {
    bad.status = status;
    for (int i = 0; i < 2; ++i) EXPECT_EQ(post("/generate", request("x")).status, 200) << status;
  }
  EXPECT_EQ(bad.num_requests, 5);
  EXPECT_EQ(good.num_requests, 10);
  for (const int status : {400, 404, 501, 504}) {
    bad.status = status;
    std::set<int> seen;
    for (int i = 0; i < 2; ++i) seen.insert(post("/generate", request("x")).status);
    EXPECT_EQ(seen, (std::set<int>{200, status}));
  }
  bad.status = good.status = 503;
  EXPECT_EQ(post("/generate", request("x")).status, 503);
  EXPECT_EQ(bad.num_requests + good.num_requests, 15 + 8 + 6) << "five retries";
  const std::string metrics = get("/metrics").body;
  EXPECT_NE(metrics.find("smg_retries_total 10"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("smg_worker_health{worker=\"" + url_of(good.port()) + "\"} 1"),
            std::string::npos);
}

TEST_F(RouterTest, ABreakerOpensAndClosesAgain) {
  FakeWorker fake;
  RouterOptions options = quick_options();
  options.max_retries = 0;
  options.limits.breaker_failure_threshold = 3;
  options.limits.breaker_success_threshold = 2;
  options.limits.breaker_timeout = milliseconds(200);
  options.worker_urls = {url_of(fake.port())};
  router_ = std::make_unique<Router>(options);
  EXPECT_TRUE(has_healthy(1));
  const auto state = [&] { return get("/workers").json()["workers"][0]["circuit_breaker"]; };
  fake.status = 500;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(state(), "closed");
    EXPECT_EQ(post("/generate", request("x")).status, 500) << "the last attempt's own answer";
  }
  EXPECT_EQ(state(), "open");
  EXPECT_EQ(post("/generate", request("x")).status, 503);
  EXPECT_EQ(fake.num_requests, 3) << "nobody is asked while it is open";
  std::this_thread::sleep_for(milliseconds(250));
  EXPECT_EQ(state(), "half_open");
  EXPECT_EQ(post("/generate", request("x")).status, 500);
  EXPECT_EQ(state(), "open") << "the trial has failed";
  std::this_thread::sleep_for(milliseconds(250));
  fake.status = 200;
  EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(state(), "half_open");
  EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(state(), "closed");
}

TEST_F(RouterTest, KeysAndHeaders) {
  FakeWorker fake;
  RouterOptions options = quick_options();
  options.api_key = "outer";
  options.worker_api_key = "inner";
  options.worker_urls = {url_of(fake.port())};
  router_ = std::make_unique<Router>(options);
  const std::string key = "Authorization: Bearer outer\r\n";
  EXPECT_TRUE(TestServer::eventually([&] { return get("/health").status == 200; }));
  EXPECT_EQ(post("/generate", request("x")).status, 401);
  EXPECT_EQ(get("/workers").status, 401);
  EXPECT_EQ(
      post("/some/path?a=b%20c", request("x"), key + "X-Trace: 7\r\nKeep-Alive: 5\r\n").status,
      200);
  EXPECT_EQ(fake.last_path, "/some/path?a=b%20c");
  EXPECT_EQ(*find_header(fake.last_headers, "Authorization"), "Bearer inner");
  EXPECT_EQ(*find_header(fake.last_headers, "X-Trace"), "7");
  EXPECT_EQ(find_header(fake.last_headers, "Keep-Alive"), nullptr);
}

TEST_F(RouterTest, ControlReachesEveryEngine) {
  start(2);
  EXPECT_EQ(get("/flush_cache").status, 200);
  EXPECT_EQ(post("/update_weight_version", {{"new_version", "v2"}}).status, 200);
  for (const auto& worker : workers_) {
    EXPECT_EQ(worker->get("/model_info").json()["weight_version"], "v2");
  }
  EXPECT_EQ(post("/pause_generation", {{"mode", "in_place"}}).status, 200);
  for (const auto& worker : workers_) EXPECT_TRUE(worker->server().service().is_paused());
  EXPECT_EQ(post("/continue_generation", Json::object()).status, 200);
  workers_[1].reset();
  EXPECT_EQ(get("/flush_cache").status, 502) << "one did not do it";
}

TEST_F(RouterTest, OnlyWorkersWithTheCurrentWeightsAreAsked) {
  RouterOptions options = quick_options();
  options.policy = RoutingPolicyKind::kRoundRobin;
  start(2, options);
  const auto worker_of = [&](int port) {
    Json found;
    const Json all = get("/workers").json()["workers"];
    for (const Json& worker : all) {
      if (worker["url"] == url_of(port)) found = worker;
    }
    return found;
  };
  EXPECT_EQ(get("/workers").json()["weight_version"], nullptr);
  EXPECT_EQ(post("/update_weight_version", {{"new_version", "v2"}}).status, 200);
  EXPECT_EQ(get("/workers").json()["weight_version"], "v2");
  EXPECT_EQ(post("/update_weight_version", {{"new_version", ""}}).status, 400);
  EXPECT_EQ(get("/workers").json()["weight_version"], "v2") << "nobody has done it";
  for (int i = 0; i < 4; ++i) EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(num_answered(), (std::vector<int>{2, 2}));

  // Another process takes the second one's place, with the weights it was started with.
  TestServer::Settings same_port = settings_;
  same_port.http.port = workers_[1]->port();
  workers_[1].reset();
  workers_[1] = std::make_unique<TestServer>(same_port, script_);
  const int port = workers_[1]->port();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_TRUE(TestServer::eventually([&] {
    const Json worker = worker_of(port);
    return worker["is_healthy"] == true && worker["weight_version"].is_string();
  }));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(num_answered(), (std::vector<int>{14, 0}));
  const Json stale = worker_of(port);
  EXPECT_EQ(stale["is_routable"], false);
  EXPECT_NE(stale["reason"].get<std::string>().find("v2"), std::string::npos) << stale;

  // It is updated, by itself.
  EXPECT_EQ(workers_[1]->post("/update_weight_version", {{"new_version", "v2"}}).status, 200);
  EXPECT_TRUE(TestServer::eventually([&] { return worker_of(port)["is_routable"] == true; }));
  EXPECT_EQ(worker_of(port)["reason"], nullptr);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(post("/generate", request("x")).status, 200);
  EXPECT_EQ(num_answered(), (std::vector<int>{16, 2}));
}

TEST(RouterDefaultsTest, AWorkerThatHangsIsFoundWithinSeconds) {
  EXPECT_EQ(RouterOptions().health_timeout, std::chrono::seconds(5));
  EXPECT_EQ(RouterOptions().limits.health_failure_threshold, 3);
}

TEST_F(RouterTest, DrainingRefusesNewRequests) {
  script_->delay = milliseconds(1);
  start(1);
  auto held = std::async(std::launch::async, [&] { return post("/generate", request("x", 300)); });
  EXPECT_TRUE(TestServer::eventually(
      [&] { return workers_[0]->server().service().load().num_running == 1; }));
  router_->begin_drain();
  EXPECT_EQ(get("/health").status, 503);
  EXPECT_EQ(post("/generate", request("x")).status, 503);
  router_->drain(std::chrono::seconds(20));
  EXPECT_EQ(held.get().json()["output_ids"].size(), 300u);
}

TEST(PrefixIndexTest, MatchesWholeStepsAndForgetsTheOldest) {
  PrefixIndex index(4);
  const std::string a = std::string(64, 'a') + std::string(64, 'b') + "tail";
  EXPECT_EQ(index.match(a), 0u);
  index.insert(a);
  EXPECT_EQ(index.match(a), a.size());
  EXPECT_EQ(index.match(a + " and more"), 128u);
  EXPECT_EQ(index.match(std::string(64, 'a') + "x"), 64u);
  EXPECT_EQ(index.match("x" + a), 0u);
  EXPECT_EQ(index.match(""), 0u);
  index.insert(std::string(128, 'z'));
  EXPECT_EQ(index.size(), 4u);
  EXPECT_EQ(index.match(std::string(128, 'z')), 128u);
}

}  // namespace
}  // namespace fathom
