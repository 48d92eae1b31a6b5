// Through HTTP the bits are the same: log-probs of sampled tokens are the trainer's forward,
// scoring is `score`, and neither neighbours nor streaming change anything.
#include <gtest/gtest.h>

#include <future>

#include "fathom/server/generate_answer.h"
#include "fathom/server/test_server.h"
#include "fathom/train/score.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

class ServerBitsTest : public ::testing::Test {
 protected:
  ServerBitsTest() {
    ServedModel model;
    model.config = weights_.config;
    model.path = model.name = "tiny";
    model.next_seed = [] { return uint64_t{5}; };
    ServerOptions options;
    server_ = std::make_unique<EngineServer>(
        [&](OnToken on_token) {
          EngineOptions engine;
          engine.max_running_requests = 6;
          engine.chunked_prefill_size = 20;
          engine.on_token = std::move(on_token);
          return std::make_unique<Engine>(server_ctx_, weights_, engine);
        },
        std::move(model), options);
  }

  Json generate(const Json& body) {
    const Reply reply = ask(server_->port(), "POST", "/generate", body.dump());
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json();
  }

  // A pool is one caller's: the server's engine has another one than what it is compared with.
  ThreadPool server_pool_{2}, pool_{2};
  ExecContext server_ctx_{&server_pool_, detect_cpu_isa()}, ctx_{&pool_, detect_cpu_isa()};
  Weights weights_ = make_tiny_weights(3);
  std::unique_ptr<EngineServer> server_;
};

Json request(const std::vector<int32_t>& prompt, uint64_t seed) {
  return {
      {"input_ids", prompt},
      {"return_logprob", true},
      {"return_routed_experts", true},
      {"return_indexer_topk", true},
      {"sampling_params", {{"max_new_tokens", 50}, {"sampling_seed", seed}, {"ignore_eos", true}}}};
}

std::vector<float> log_probs_of(const Json& entries, size_t first = 0) {
  std::vector<float> out;
  for (size_t i = first; i < entries.size(); ++i) {
    out.push_back(static_cast<float>(entries[i][0].get<double>()));
  }
  return out;
}

TEST_F(ServerBitsTest, ManyAtOnceEqualTheTrainersForwardAndTheEngineAlone) {
  struct Case {
    std::vector<int32_t> prompt;
    std::future<Json> answer;
  };
  std::vector<Case> cases(12);
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].prompt =
        random_ids(i, 1 + static_cast<int64_t>(i * 7 % 45), weights_.config.vocab_size);
    cases[i].answer = std::async(std::launch::async, [&, i] {
      Json body = request(cases[i].prompt, 100 + i);
      if (i % 3 != 0) return generate(body);
      body["stream"] = true;
      return events_of(ask(server_->port(), "POST", "/generate", body.dump())).back();
    });
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    const Json answer = cases[i].answer.get();
    const Json& meta = answer["meta_info"];
    std::vector<int32_t> tokens = cases[i].prompt;
    for (const Json& id : answer["output_ids"]) tokens.push_back(id.get<int32_t>());
    ASSERT_EQ(tokens.size(), cases[i].prompt.size() + 50);

    const NamedTensors scored = score(ctx_, weights_, {tokens}, {});
    const Tensor& expected = scored.at(0).second;
    const std::vector<float> got = log_probs_of(meta["output_token_logprobs"]);
    for (size_t t = 0; t < got.size(); ++t) {
      EXPECT_EQ(got[t], expected.f32()[cases[i].prompt.size() - 1 + t])
          << "case " << i << " token " << t;
    }

    Engine alone(ctx_, weights_, EngineOptions());
    Request r{.prompt_ids = cases[i].prompt, .seeds = {100 + i}, .record_replay = true};
    r.sampling.max_new_tokens = 50;
    r.sampling.ignore_eos = true;
    alone.submit(r);
    const Completion direct = alone.run_until_done().at(0);
    EXPECT_EQ(answer["output_ids"], Json(direct.token_ids));
    const auto base64_of = [](std::vector<int32_t> values) {
      return base64(values.data(), values.size() * 4);
    };
    EXPECT_EQ(meta["routed_experts"], base64_of(direct.replay.routes));
    EXPECT_EQ(meta["indexer_topk"], base64_of(direct.replay.picks));

    // Scoring the same tokens over HTTP.
    const Json again = generate({{"input_ids", tokens},
                                 {"return_logprob", true},
                                 {"logprob_start_len", cases[i].prompt.size() - 1},
                                 {"sampling_params", {{"max_new_tokens", 0}, {"temperature", 0}}}});
    EXPECT_EQ(log_probs_of(again["meta_info"]["input_token_logprobs"], 1), got) << "case " << i;
  }
}

}  // namespace
}  // namespace fathom
