// Everything but generation itself: access, control, information, limits.
#include "fathom/server/api.h"

#include <gtest/gtest.h>

#include <cmath>
#include <future>
#include <thread>

#include "fathom/server/test_server.h"

namespace fathom {
namespace {

using std::chrono::milliseconds;

Json long_request(const std::string& rid, int64_t max_new_tokens = 3000) {
  return {{"text", "abc"},
          {"rid", rid},
          {"sampling_params", {{"max_new_tokens", max_new_tokens}, {"ignore_eos", true}}}};
}

std::shared_ptr<Script> slow_script() {
  auto script = std::make_shared<Script>();
  script->delay = milliseconds(2);
  return script;
}

TEST(ApiTest, WhatIsNotThereOrNotForThatMethod) {
  const TestServer server;
  EXPECT_EQ(server.get("/nothing").status, 404);
  EXPECT_EQ(server.get("/generate").status, 405);
  EXPECT_EQ(server.post("/health", Json::object()).status, 405);
  EXPECT_EQ(ask(server.port(), "DELETE", "/generate").status, 405);
  EXPECT_EQ(ask(server.port(), "HEAD", "/health").status, 200);
  EXPECT_EQ(ask(server.port(), "PUT", "/generate", R"({"text": "a"})").status, 200);
  for (const char* path :
       {"/update_weights_from_tensor", "/update_weights_from_ipc", "/init_weights_update_group",
        "/update_weights_from_distributed", "/begin_weight_update", "/pull_weights",
        "/start_profile", "/update_weights_from_disk", "/weights_checker",
        "/get_weights_by_name"}) {
    Json body = Json::object();
    if (path == std::string("/update_weights_from_disk")) body = {{"model_path", "/x"}};
    const Reply reply = server.post(path, body);
    EXPECT_EQ(reply.status, 501) << path;
    EXPECT_FALSE(reply.error()["message"].get<std::string>().empty());
  }
}

TEST(ApiTest, TheKeyIsAskedForEverywhereButAtHealth) {
  const TestServer server({.api_key = "secret"});
  const Json body{{"text", "a"}, {"sampling_params", {{"max_new_tokens", 1}}}};
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.get("/health_generate").status, 200);
  for (const char* path : {"/model_info", "/metrics", "/v1/models", "/server_info"}) {
    EXPECT_EQ(server.get(path).status, 401) << path;
    EXPECT_EQ(server.get(path, "Authorization: Bearer secret\r\n").status, 200) << path;
  }
  EXPECT_EQ(server.post("/generate", body).status, 401);
  for (const char* wrong : {"Authorization: Bearer secreT\r\n", "Authorization: Bearer \r\n",
                            "Authorization: Bearer\r\n", "Authorization: secret\r\n",
                            "Authorization: Bearer secretsecret\r\n", "Authorization: Basic x\r\n",
                            "X-Api-Key: secret\r\n"}) {
    const Reply reply = server.post("/generate", body, wrong);
    EXPECT_EQ(reply.status, 401) << wrong;
    EXPECT_EQ(reply.body.find("secret"), std::string::npos);
  }
  EXPECT_EQ(server.post("/generate", body, "authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(server.post("/generate", body, "Authorization: bEARER secret\r\n").status, 200);
  EXPECT_EQ(server.get("/server_info", "Authorization: Bearer secret\r\n").body.find("secret"),
            std::string::npos);
}

TEST(ApiTest, WebPagesAreRefusedWithoutAKey) {
  const TestServer open, locked({.api_key = "k"});
  EXPECT_EQ(open.get("/model_info", "Origin: https://evil.example\r\n").status, 403);
  EXPECT_EQ(locked.get("/model_info", "Origin: https://x\r\nAuthorization: Bearer k\r\n").status,
            200);
}

TEST(ApiTest, TheServerDescribesItself) {
  const TestServer server;
  const Json info = server.get("/get_model_info").json();
  EXPECT_EQ(info, server.get("/model_info").json());
  EXPECT_EQ(info["model_path"], "/models/scripted");
  EXPECT_EQ(info["is_generation"], true);
  EXPECT_EQ(info["weight_version"], "default");
  const Json models = server.get("/v1/models").json();
  EXPECT_EQ(models["data"][0]["id"], "scripted");
  EXPECT_EQ(models["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(server.get("/v1/models/scripted").json(), models["data"][0]);
  EXPECT_EQ(server.get("/v1/models/other").status, 404);
  const Json state = server.get("/server_info").json();
  EXPECT_EQ(state["status"], "ready");
  EXPECT_EQ(state["internal_states"][0]["num_running_reqs"], 0);
  EXPECT_EQ(server.get("/v1/loads").json()[0]["num_reqs"], 0);
  EXPECT_EQ(server.post("/tokenize", {{"prompt", "ab"}}).json()["tokens"], Json({100, 101}));
  const Json two = server.post("/v1/tokenize", {{"prompt", {"a", "bc"}}}).json();
  EXPECT_EQ(two["tokens"], Json({{100}, {101, 102}}));
  EXPECT_EQ(two["count"], Json({1, 2}));
  EXPECT_EQ(server.post("/detokenize", {{"tokens", {0, 100, 101, 1}}}).json()["text"], "ab");
  EXPECT_EQ(server.post("/v1/detokenize", {{"tokens", {{100}, {101}}}}).json()["text"],
            Json({"a", "b"}));
  EXPECT_EQ(
      server.post("/detokenize", {{"tokens", {0}}, {"skip_special_tokens", false}}).json()["text"],
      "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>");
}

TEST(ApiTest, MetricsCountWhatHappened) {
  TestServer server;
  EXPECT_EQ(server.metric("sglang:num_requests_total"), 0);
  for (int i = 0; i < 3; ++i) {
    server.post("/generate", {{"text", "abcd"},
                              {"sampling_params", {{"max_new_tokens", 5}, {"ignore_eos", true}}}});
  }
  EXPECT_TRUE(server.becomes_idle());
  EXPECT_EQ(server.metric("sglang:num_requests_total"), 3);
  EXPECT_EQ(server.metric("sglang:prompt_tokens_total"), 12);
  EXPECT_EQ(server.metric("sglang:generation_tokens_total"), 15);
  EXPECT_EQ(server.metric("sglang:num_running_reqs"), 0);
  EXPECT_EQ(server.metric("sglang:num_queue_reqs"), 0);
  EXPECT_EQ(server.metric("sglang:time_to_first_token_seconds_count"), 3);
  EXPECT_EQ(server.metric("sglang:inter_token_latency_seconds_count"), 12);
  EXPECT_EQ(server.metric("sglang:e2e_request_latency_seconds_count"), 3);
  EXPECT_EQ(server.metric("sglang:generation_tokens_histogram_sum"), 15);
  EXPECT_EQ(server.metric("sglang:context_len"), 4096);
  const Reply page = server.get("/metrics");
  EXPECT_NE(page.head.find("text/plain; version=0.0.4"), std::string::npos);
  EXPECT_NE(page.body.find("# TYPE sglang:prompt_tokens_total counter\n"), std::string::npos);
  EXPECT_NE(page.body.find(
                "sglang:generation_tokens_histogram_bucket{model_name=\"scripted\",le=\"5\"} 3\n"),
            std::string::npos);
}

TEST(ApiTest, AbortEndsRequestsByTheBeginningOfTheirId) {
  TestServer server({}, slow_script());
  const auto start = [&](const std::string& rid) {
    return std::async(std::launch::async,
                      [&server, rid] { return server.post("/generate", long_request(rid)); });
  };
  auto a1 = start("a-1"), a2 = start("a-2"), b = start("b-1");
  EXPECT_TRUE(
      TestServer::eventually([&] { return server.server().service().load().num_running == 3; }));
  EXPECT_EQ(server.post("/abort_request", {{"rid", "a-"}}).status, 200);
  for (auto* aborted : {&a1, &a2}) {
    const Reply reply = aborted->get();
    EXPECT_EQ(reply.status, 200);
    const Json reason = reply.json()["meta_info"]["finish_reason"];
    EXPECT_EQ(reason["type"], "abort");
    EXPECT_EQ(reason["message"], "Abort by user");
    EXPECT_LT(reply.json()["output_ids"].size(), 3000u);
  }
  EXPECT_EQ(server.server().service().load().num_unfinished, 1);
  EXPECT_EQ(server.post("/abort_request", {{"abort_all", true}}).status, 200);
  EXPECT_EQ(b.get().json()["meta_info"]["finish_reason"]["type"], "abort");
  EXPECT_EQ(server.metric("sglang:num_aborted_requests_total"), 3);
  EXPECT_EQ(server.post("/abort_request", {{"rid", "nobody"}}).status, 200);
  EXPECT_EQ(server.post("/abort_request", {{"rid", ""}}).status, 400);
  EXPECT_EQ(server.post("/abort_request", Json::object()).status, 400);
}

TEST(ApiTest, AClientThatLeavesFreesItsPlace) {
  TestServer server({}, slow_script());
  for (const bool stream : {false, true}) {
    Json body = long_request("gone");
    body["stream"] = stream;
    {
      RawSocket socket(server.port());
      const std::string text = body.dump();
      socket.send(str_cat("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: ", text.size(),
                          "\r\n\r\n", text));
      EXPECT_TRUE(TestServer::eventually(
          [&] { return server.server().service().load().num_running == 1; }));
    }
    EXPECT_TRUE(server.becomes_idle());
    EXPECT_TRUE(TestServer::eventually([&] { return server.server().is_idle(); }));
  }
}

TEST(ApiTest, PauseHoldsOrEndsAndContinueGoesOn) {
  TestServer server({}, slow_script());
  const Json body = [] {
    Json b = long_request("held", 200);
    b["sampling_params"]["sampling_seed"] = 9;
    return b;
  }();
  const Json undisturbed = server.post("/generate", body).json();
  auto held = std::async(std::launch::async, [&] { return server.post("/generate", body); });
  EXPECT_TRUE(
      TestServer::eventually([&] { return server.server().service().load().num_running == 1; }));
  EXPECT_EQ(server.post("/pause_generation", {{"mode", "in_place"}}).json()["status"], "ok");
  EXPECT_EQ(held.wait_for(milliseconds(800)), std::future_status::timeout);
  EXPECT_EQ(server.get("/server_info").json()["status"], "paused");
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.get("/health_generate").status, 503);
  EXPECT_EQ(server.get("/flush_cache").status, 400) << "a request is unfinished";
  EXPECT_EQ(server.post("/update_weight_version", {{"new_version", "2"}}).status, 400);
  EXPECT_EQ(server.post("/continue_generation", Json::object()).status, 200);
  EXPECT_EQ(held.get().json()["output_ids"], undisturbed["output_ids"]);

  auto ended =
      std::async(std::launch::async, [&] { return server.post("/generate", long_request("e")); });
  EXPECT_TRUE(
      TestServer::eventually([&] { return server.server().service().load().num_running == 1; }));
  EXPECT_EQ(server.post("/pause_generation", Json::object()).status, 200);
  EXPECT_EQ(ended.get().json()["meta_info"]["finish_reason"]["type"], "abort");
  auto waits = std::async(std::launch::async, [&] { return server.post("/generate", body); });
  EXPECT_EQ(waits.wait_for(milliseconds(300)), std::future_status::timeout);
  EXPECT_EQ(server.post("/continue_generation", Json::object()).status, 200);
  EXPECT_EQ(waits.get().json()["output_ids"], undisturbed["output_ids"]);
  EXPECT_EQ(server.post("/pause_generation", {{"mode", "sideways"}}).error()["param"], "mode");
}

TEST(ApiTest, AnswersCarryTheNameOfTheirWeights) {
  TestServer server;
  const Json body{{"text", "a"}, {"sampling_params", {{"max_new_tokens", 1}}}};
  EXPECT_EQ(server.get("/flush_cache").status, 200);
  EXPECT_EQ(ask(server.port(), "POST", "/flush_cache").status, 200);
  EXPECT_EQ(server.post("/generate", body).json()["meta_info"]["weight_version"], "default");
  const Json done = server.post("/update_weight_version", {{"new_version", "step-7"}}).json();
  EXPECT_EQ(done["success"], true);
  EXPECT_EQ(server.post("/generate", body).json()["meta_info"]["weight_version"], "step-7");
  EXPECT_EQ(server.get("/flush_cache").status, 200);
  EXPECT_EQ(server.post("/generate", body).json()["meta_info"]["weight_version"], "step-7");
  EXPECT_EQ(server.get("/model_info").json()["weight_version"], "step-7");
}

TEST(ApiTest, MemoryIsGivenBackAndTakenAgain) {
  TestServer server;
  const Json body{{"text", "abcdef"},
                  {"sampling_params", {{"max_new_tokens", 40}, {"sampling_seed", 3}}}};
  const Json before = server.post("/generate", body).json();
  EXPECT_TRUE(server.becomes_idle());
  for (const Json& tags : {Json(nullptr), Json{"kv_cache"}, Json{"kv_cache", "cuda_graph"}}) {
    const Reply released = server.post("/release_memory_occupation", {{"tags", tags}});
    EXPECT_EQ(released.status, 200) << released.body;
    EXPECT_GT(released.json()["state_bytes"], 0);
    auto held = std::async(std::launch::async, [&] { return server.post("/generate", body); });
    EXPECT_EQ(held.wait_for(milliseconds(200)), std::future_status::timeout);
    EXPECT_EQ(server.post("/resume_memory_occupation", {{"tags", tags}}).status, 200);
    EXPECT_EQ(held.get().json()["output_ids"], before["output_ids"]);
    EXPECT_TRUE(server.becomes_idle());
  }
  EXPECT_EQ(server.post("/release_memory_occupation", {{"tags", {"weights"}}}).status, 501);
  EXPECT_EQ(server.post("/release_memory_occupation", {{"tags", {"x"}}}).error()["param"], "tags");
}

TEST(ApiTest, ARetractedRequestGoesOnWithTheNewWeights) {
  TestServer server({}, slow_script());
  auto held = std::async(std::launch::async,
                         [&] { return server.post("/generate", long_request("held", 400)); });
  EXPECT_TRUE(TestServer::eventually(
      [&] { return server.metric("sglang:time_to_first_token_seconds_count") == 1; }));
  EXPECT_EQ(server.get("/flush_cache").status, 400);
  EXPECT_EQ(server.post("/release_memory_occupation", Json::object()).status, 400);
  EXPECT_EQ(server.post("/pause_generation", {{"mode", "retract"}}).status, 200);
  EXPECT_EQ(server.get("/flush_cache").status, 200);
  EXPECT_EQ(server.post("/release_memory_occupation", Json::object()).status, 200);
  EXPECT_EQ(server.post("/resume_memory_occupation", Json::object()).status, 200);
  EXPECT_EQ(server.post("/update_weight_version", {{"new_version", "two"}}).status, 200);
  EXPECT_EQ(server.post("/continue_generation", Json::object()).status, 200);
  const Json answer = held.get().json();
  EXPECT_EQ(answer["output_ids"].size(), 400u);
  const Json& meta = answer["meta_info"];
  EXPECT_EQ(meta["weight_version"], "two");
  ASSERT_EQ(meta["weight_versions"].size(), 2u);
  EXPECT_EQ(meta["weight_versions"][0]["version"], "default");
  EXPECT_EQ(meta["weight_versions"][0]["end"], meta["weight_versions"][1]["start"]);
  EXPECT_EQ(meta["weight_versions"][1]["end"], 400);
  EXPECT_EQ(meta["total_retractions"], 1);
  EXPECT_EQ(server.metric("sglang:num_retracted_requests_total"), 1);
  EXPECT_EQ(server.metric("sglang:num_retracted_input_tokens_total"), 3);
  EXPECT_GT(server.metric("sglang:num_retracted_output_tokens_total"), 0);
  EXPECT_EQ(server.get("/get_weight_version").json()["weight_version"], "two");
}

TEST(ApiTest, APromptSentAgainComesFromTheCacheAndTheMetricsSayIt) {
  TestServer server;
  const Json body{
      {"text", std::string(100, 'a') + "b"},
      {"sampling_params", {{"max_new_tokens", 5}, {"ignore_eos", true}, {"sampling_seed", 1}}}};
  const Json first = server.post("/generate", body).json();
  const Json again = server.post("/generate", body).json();
  EXPECT_EQ(first["meta_info"]["cached_tokens"], 0);
  EXPECT_EQ(again["meta_info"]["cached_tokens"], 96) << "six pages of 16";
  EXPECT_EQ(first["output_ids"], again["output_ids"]);
  EXPECT_TRUE(server.becomes_idle());
  EXPECT_EQ(server.metric("sglang:cached_tokens_total"), 96);
  EXPECT_GT(server.metric("sglang:cache_hit_rate"), 0.4);
  EXPECT_EQ(server.metric("sglang:page_size"), 16);
  EXPECT_EQ(server.metric("sglang:queue_time_seconds_count"), 2);
  EXPECT_GT(server.metric("fathom:state_used_bytes"), 0);
  EXPECT_EQ(server.get("/flush_cache").status, 200);
  EXPECT_TRUE(
      TestServer::eventually([&] { return server.metric("fathom:state_used_bytes") == 0; }));
  const Json state = server.get("/get_server_info").json()["internal_states"][0];
  EXPECT_EQ(state["state_used_bytes"], 0);
  EXPECT_EQ(state["num_cached_pages"], 0);
  EXPECT_GT(state["resident_bytes"], 0);
}

TEST(ApiTest, TheQueueHasALimitAndIdsAreTakenOnce) {
  TestServer server({.max_running_requests = 2, .max_queued_requests = 3}, slow_script());
  std::vector<std::future<Reply>> held;
  for (int i = 0; i < 5; ++i) {
    held.push_back(std::async(std::launch::async, [&server, i] {
      return server.post("/generate", long_request(str_cat("r", i)));
    }));
  }
  EXPECT_TRUE(
      TestServer::eventually([&] { return server.server().service().load().num_unfinished == 5; }));
  const Reply full = server.post("/generate", long_request("one more"));
  EXPECT_EQ(full.status, 503);
  EXPECT_NE(full.error()["message"].get<std::string>().find("queue is full"), std::string::npos);
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}}).status, 503);
  server.post("/abort_request", {{"rid", "r4"}});
  EXPECT_EQ(held.back().get().status, 200);
  const Reply taken = server.post("/generate", long_request("r0"));
  EXPECT_EQ(taken.status, 400);
  EXPECT_EQ(taken.error()["param"], "rid");
  server.post("/abort_request", {{"abort_all", true}});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(held[static_cast<size_t>(i)].get().status, 200);
  const Json twice{{"text", {"a", "b"}}, {"rid", {"same", "same"}}};
  EXPECT_EQ(server.post("/generate", twice).status, 400);
  EXPECT_EQ(server.post("/generate", long_request("same", 2)).status, 200) << "free again";
}

TEST(ApiTest, ARequestMayNotTakeForever) {
  TestServer server({.request_timeout = std::chrono::seconds(1)}, slow_script());
  EXPECT_EQ(server.post("/generate", long_request("slow")).status, 504);
  Json streamed = long_request("slow2");
  streamed["stream"] = true;
  const Json last = events_of(server.post("/generate", streamed)).back();
  EXPECT_EQ(last["error"]["code"], 504);
  EXPECT_TRUE(server.becomes_idle());
}

TEST(ApiTest, DrainingAnswersWhatIsUnderWayAndRefusesTheRest) {
  TestServer server({}, slow_script());
  auto held = std::async(std::launch::async,
                         [&] { return server.post("/generate", long_request("held", 300)); });
  EXPECT_TRUE(
      TestServer::eventually([&] { return server.server().service().load().num_running == 1; }));
  server.server().begin_drain();
  EXPECT_EQ(server.get("/health").status, 503) << "and not refused by the kernel";
  EXPECT_EQ(server.post("/generate", long_request("late")).status, 503);
  EXPECT_FALSE(server.server().is_idle());
  server.server().drain(std::chrono::seconds(30));
  EXPECT_THROW(RawSocket(server.port()), UserError);
  const Reply reply = held.get();
  EXPECT_EQ(reply.json()["output_ids"].size(), 300u);
  EXPECT_NE(reply.head.find("Connection: close"), std::string::npos);

  TestServer impatient({}, slow_script());
  auto cut = std::async(std::launch::async,
                        [&] { return impatient.post("/generate", long_request("cut")); });
  EXPECT_TRUE(
      TestServer::eventually([&] { return impatient.server().service().load().num_running == 1; }));
  impatient.server().drain(milliseconds(50));
  const Json reason = cut.get().json()["meta_info"]["finish_reason"];
  EXPECT_EQ(reason["type"], "abort");
  EXPECT_EQ(reason["message"], "The server is shutting down");
}

TEST(ApiTest, AServerGoesAwayWithRequestsUnderWay) {
  for (int round = 0; round < 5; ++round) {
    auto server = std::make_unique<TestServer>(TestServer::Settings(), slow_script());
    const int port = server->port();
    std::vector<std::future<Reply>> held;
    for (int i = 0; i < 4; ++i) {
      held.push_back(std::async(std::launch::async, [port, i] {
        Json body = long_request(str_cat("r", i));
        body["stream"] = i % 2 == 0;
        return ask(port, "POST", "/generate", body.dump());
      }));
    }
    EXPECT_TRUE(
        TestServer::eventually([&] { return server->server().service().load().num_running == 4; }));
    server.reset();
    for (auto& reply : held) reply.get();
  }
}

/// A model whose logits break at the fourth step.
class BreakingModel : public StepModel {
 public:
  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    for (const Segment& segment : batch.segments) segment.state->advance(segment.num_tokens);
    if (rows.empty()) return Tensor();
    Tensor logits = Tensor::empty({static_cast<int64_t>(rows.size()), kByteVocab});
    std::fill(logits.f32(), logits.f32() + logits.numel(), ++num_steps_ < 4 ? 0.0f : NAN);
    return logits;
  }

 private:
  int num_steps_ = 0;
};

TEST(ApiTest, ALostEngineIsSaidSo) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  ServedModel model;
  model.config = scripted_model_config();
  model.name = "broken";
  model.next_seed = [] { return uint64_t{1}; };
  EngineServer server(
      [&](OnToken on_token) {
        EngineOptions options;
        options.on_token = std::move(on_token);
        return std::make_unique<Engine>(ctx, scripted_model_config(),
                                        std::make_unique<BreakingModel>(), options);
      },
      std::move(model), ServerOptions());
  const std::string body =
      R"({"input_ids": [0], "sampling_params": {"max_new_tokens": 50, "ignore_eos": true}})";
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 200);
  const Reply failed = ask(server.port(), "POST", "/generate", body);
  EXPECT_EQ(failed.status, 500);
  EXPECT_NE(failed.error()["message"].get<std::string>().find("NaN"), std::string::npos);
  EXPECT_EQ(ask(server.port(), "POST", "/generate", body).status, 503);
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 503);
  EXPECT_EQ(ask(server.port(), "GET", "/health_generate").status, 503);
  EXPECT_EQ(ask(server.port(), "GET", "/flush_cache").status, 503);
  EXPECT_EQ(ask(server.port(), "POST", "/generate", R"({"text": "a"})").status, 400)
      << "there is no tokenizer";
}

}  // namespace
}  // namespace fathom
