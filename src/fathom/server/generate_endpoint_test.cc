// POST /generate against the engine itself: the same tokens and log-probs, in SGLang's shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "fathom/server/generate_answer.h"
#include "fathom/server/test_server.h"

namespace fathom {
namespace {

std::vector<uint8_t> from_base64(const std::string& text) {
  std::vector<uint8_t> out;
  uint32_t word = 0;
  int bits = 0;
  for (const char c : text) {
    if (c == '=') break;
    const size_t digit =
        std::string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/").find(c);
    word = word << 6 | static_cast<uint32_t>(digit);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out.push_back(static_cast<uint8_t>(word >> bits));
    }
  }
  return out;
}

std::vector<int32_t> int32s_from_base64(const std::string& text) {
  const std::vector<uint8_t> bytes = from_base64(text);
  std::vector<int32_t> out(bytes.size() / 4);
  std::memcpy(out.data(), bytes.data(), out.size() * 4);
  return out;
}

class GenerateEndpointTest : public ::testing::Test {
 protected:
  Json generate(const Json& body) {
    const Reply reply = server_.post("/generate", body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json();
  }
  std::vector<Completion> directly(const Request& request) {
    const std::unique_ptr<Engine> engine = server_.make_engine();
    engine->submit(request);
    return engine->run_until_done();
  }
  TestServer server_;
};

TEST_F(GenerateEndpointTest, OneAnswerIsTheEngines) {
  const std::vector<int32_t> prompt = {0, 75, 104};
  Request r{.prompt_ids = prompt, .seeds = {77}};
  r.sampling.max_new_tokens = 30;
  r.sampling.temperature = 0.9f;
  r.sampling.top_k = 40;
  r.sampling.top_p = 0.95f;
  r.sampling.min_p = 0.01f;
  r.sampling.frequency_penalty = 0.3f;
  const Completion expected = directly(r).at(0);
  const Json answer = generate({{"input_ids", prompt},
                                {"return_logprob", true},
                                {"sampling_params",
                                 {{"max_new_tokens", 30},
                                  {"temperature", 0.9},
                                  {"top_k", 40},
                                  {"top_p", 0.95},
                                  {"min_p", 0.01},
                                  {"frequency_penalty", 0.3},
                                  {"sampling_seed", 77},
                                  {"skip_special_tokens", false}}}});
  EXPECT_EQ(answer["output_ids"], Json(expected.token_ids));
  EXPECT_EQ(answer["text"], expected.text);
  const Json& meta = answer["meta_info"];
  EXPECT_EQ(meta["prompt_tokens"], 3);
  EXPECT_EQ(meta["completion_tokens"], expected.token_ids.size());
  EXPECT_EQ(meta["weight_version"], "default");
  EXPECT_EQ(meta["sampling_seed"], 77);
  EXPECT_GT(meta["e2e_latency"].get<double>(), 0);
  EXPECT_FALSE(meta["id"].get<std::string>().empty());
  const Json& log_probs = meta["output_token_logprobs"];
  ASSERT_EQ(log_probs.size(), expected.token_ids.size());
  EXPECT_EQ(meta["output_token_logprobs_length"], log_probs.size());
  EXPECT_EQ(meta["input_token_logprobs"], Json::array());
  for (size_t i = 0; i < log_probs.size(); ++i) {
    EXPECT_EQ(static_cast<float>(log_probs[i][0].get<double>()), expected.log_probs[i]);
    EXPECT_EQ(log_probs[i][1], expected.token_ids[i]);
    EXPECT_TRUE(log_probs[i][2].is_null());
  }
  const Json bare = generate({{"input_ids", prompt}, {"sampling_params", {{"max_new_tokens", 2}}}});
  EXPECT_FALSE(bare["meta_info"].contains("output_token_logprobs"));
  EXPECT_FALSE(bare["meta_info"].contains("routed_experts"));
}

TEST_F(GenerateEndpointTest, ListsOfPromptsAndSamplesComeBackInOrder) {
  const Json params{{"max_new_tokens", 5}, {"sampling_seed", 5}, {"ignore_eos", true}};
  const Json ids = generate({{"input_ids", {{0, 70}, {0, 71, 72}}}, {"sampling_params", params}});
  ASSERT_TRUE(ids.is_array());
  ASSERT_EQ(ids.size(), 2u);
  const Json texts = generate({{"text", {"<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>C", "abc"}},
                               {"sampling_params", params}});
  EXPECT_EQ(texts[0]["output_ids"], ids[0]["output_ids"]) << "C is byte 67, id 70";
  EXPECT_NE(texts[1]["output_ids"], ids[1]["output_ids"]);
  const Json one = generate({{"text", {"abc"}}, {"sampling_params", params}});
  ASSERT_TRUE(one.is_array()) << "a list of one stays a list";
  EXPECT_EQ(one[0]["output_ids"], texts[1]["output_ids"]);

  Json many = params;
  many["n"] = 3;
  const Json samples = generate({{"text", {"abc", "C"}}, {"sampling_params", many}});
  ASSERT_EQ(samples.size(), 6u);
  EXPECT_EQ(samples[0]["output_ids"], one[0]["output_ids"])
      << "the first sample has the seed itself";
  EXPECT_NE(samples[1]["output_ids"], samples[0]["output_ids"]);
  EXPECT_NE(samples[1]["meta_info"]["sampling_seed"], samples[2]["meta_info"]["sampling_seed"]);
  for (const int i : {0, 3}) {
    Json again = params;
    again["sampling_seed"] = samples[i + 2]["meta_info"]["sampling_seed"];
    EXPECT_EQ(generate({{"text", i == 0 ? "abc" : "C"}, {"sampling_params", again}})["output_ids"],
              samples[i + 2]["output_ids"]);
  }
  Json first = params, second = params;
  second["max_new_tokens"] = 2;
  const Json apart = generate({{"text", {"abc", "abc"}},
                               {"sampling_params", {first, second}},
                               {"return_logprob", {true, false}},
                               {"rid", {"x", "y"}}});
  EXPECT_EQ(apart[1]["output_ids"].size(), 2u);
  EXPECT_TRUE(apart[0]["meta_info"].contains("output_token_logprobs"));
  EXPECT_FALSE(apart[1]["meta_info"].contains("output_token_logprobs"));
  EXPECT_EQ(apart[1]["meta_info"]["id"], "y");
}

TEST_F(GenerateEndpointTest, RequestsWithoutASeedDiffer) {
  const Json body{{"text", "abc"},
                  {"sampling_params", {{"max_new_tokens", 8}, {"ignore_eos", true}}}};
  const Json a = generate(body), b = generate(body);
  EXPECT_NE(a["output_ids"], b["output_ids"]);
  Json again = body;
  again["sampling_params"]["sampling_seed"] = a["meta_info"]["sampling_seed"];
  EXPECT_EQ(generate(again)["output_ids"], a["output_ids"]);
}

TEST_F(GenerateEndpointTest, PromptLogProbsAreAlignedWithThePrompt) {
  const std::vector<int32_t> prompt = {0, 75, 104, 99, 17};
  Request r{.prompt_ids = prompt, .seeds = {1}};
  r.sampling.max_new_tokens = 0;
  r.prompt_log_probs_from = 1;
  r.lists = {.num_top = 2, .token_ids = {8, 9}};
  const Completion expected = directly(r).at(0);
  const Json answer = generate({{"input_ids", prompt},
                                {"sampling_params", {{"max_new_tokens", 0}, {"temperature", 0}}},
                                {"return_logprob", true},
                                {"logprob_start_len", 2},
                                {"top_logprobs_num", 2},
                                {"return_text_in_logprobs", true},
                                {"token_ids_logprob", {8, 9}}});
  EXPECT_EQ(answer["text"], "");
  EXPECT_EQ(answer["output_ids"], Json::array());
  const Json& meta = answer["meta_info"];
  EXPECT_EQ(meta["finish_reason"], Json({{"type", "length"}, {"length", 0}}));
  const Json& values = meta["input_token_logprobs"];
  ASSERT_EQ(values.size(), 3u);
  EXPECT_EQ(values[0][2], "e") << "byte 101 is id 104";
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(static_cast<float>(values[i][0].get<double>()), expected.prompt_log_probs[i]);
    EXPECT_EQ(values[i][1], prompt[2 + i]);
  }
  ASSERT_EQ(meta["input_top_logprobs"].size(), 3u);
  EXPECT_EQ(meta["input_top_logprobs"][0][0][1], expected.prompt_lists.top[0][0].token_id);
  EXPECT_EQ(meta["input_top_logprobs"][1].size(), 2u);
  EXPECT_EQ(meta["input_token_ids_logprobs"][2][1][1], 9);
  EXPECT_EQ(meta["output_token_logprobs"], Json::array());
  EXPECT_EQ(meta["output_top_logprobs"], Json::array());

  const Json both = generate({{"input_ids", {prompt, prompt}},
                              {"sampling_params", {{"max_new_tokens", 3}, {"ignore_eos", true}}},
                              {"return_logprob", true},
                              {"logprob_start_len", {0, 4}},
                              {"top_logprobs_num", {1, 0}},
                              {"token_ids_logprob", {{5}, nullptr}}});
  EXPECT_EQ(both[0]["meta_info"]["input_token_logprobs"].size(), 5u);
  EXPECT_TRUE(both[0]["meta_info"]["input_token_logprobs"][0][0].is_null());
  EXPECT_TRUE(both[0]["meta_info"]["input_top_logprobs"][0].is_null());
  EXPECT_EQ(both[0]["meta_info"]["output_top_logprobs"].size(), 3u);
  EXPECT_EQ(both[0]["meta_info"]["output_token_ids_logprobs"][2][0][1], 5);
  EXPECT_EQ(both[1]["meta_info"]["input_token_logprobs"].size(), 1u);
  EXPECT_TRUE(both[1]["meta_info"]["input_token_logprobs"][0][0].is_number());
  EXPECT_FALSE(both[1]["meta_info"].contains("output_top_logprobs"));
}

TEST_F(GenerateEndpointTest, RoutesComeAsLittleEndianInt32) {
  const std::vector<int32_t> prompt = {0, 75, 104};
  const Json answer = generate({{"input_ids", prompt},
                                {"sampling_params", {{"max_new_tokens", 3}, {"ignore_eos", true}}},
                                {"return_routed_experts", true},
                                {"return_indexer_topk", true}});
  std::vector<int32_t> fed = prompt;
  for (const Json& id : answer["output_ids"]) fed.push_back(id.get<int32_t>());
  fed.pop_back();  // the last token has no forward pass
  std::vector<int32_t> expected;
  for (const int32_t id : fed) expected.insert(expected.end(), {id, id + 1});
  EXPECT_EQ(int32s_from_base64(answer["meta_info"]["routed_experts"]), expected);
  EXPECT_EQ(answer["meta_info"]["indexer_topk"], "") << "the model has no indexer";
  EXPECT_EQ(answer["meta_info"]["indexer_topk_num_layers"], 0);
  const Json tail = generate({{"input_ids", prompt},
                              {"sampling_params", {{"max_new_tokens", 0}}},
                              {"return_routed_experts", true},
                              {"routed_experts_start_len", 1}});
  EXPECT_EQ(int32s_from_base64(tail["meta_info"]["routed_experts"]),
            (std::vector<int32_t>{75, 76}));
}

TEST_F(GenerateEndpointTest, HowAnAnswerEndsIsTold) {
  const auto script = [&](const std::string& prompt, const std::string& answer) {
    server_.script().add(server_.tokenizer().encode(prompt), server_.tokenizer().encode(answer));
  };
  script("Q1", "Hello world");
  script("Q2", "one,two;three");
  const auto finish = [](const Json& answer) { return answer["meta_info"]["finish_reason"]; };
  Json params{{"temperature", 0}, {"max_new_tokens", 50}};
  const auto run = [&](const std::string& text) {
    return generate({{"text", text}, {"sampling_params", params}});
  };
  Json answer = run("Q1");
  EXPECT_EQ(answer["text"], "Hello world");
  EXPECT_EQ(answer["output_ids"].size(), 12u) << "the end token is one of them";
  EXPECT_EQ(finish(answer), Json({{"type", "stop"}, {"matched", 1}}));
  params["no_stop_trim"] = true;
  EXPECT_EQ(run("Q1")["text"], "Hello world") << "the end token is special";
  params["skip_special_tokens"] = false;
  EXPECT_EQ(run("Q1")["text"], "Hello world<\uFF5Cend\u2581of\u2581sentence\uFF5C>");
  params.erase("no_stop_trim");
  EXPECT_EQ(run("Q1")["text"], "Hello world");

  params["stop"] = {"three", ",t"};
  answer = run("Q2");
  EXPECT_EQ(answer["text"], "one");
  EXPECT_EQ(finish(answer), Json({{"type", "stop"}, {"matched", ",t"}}));
  params["no_stop_trim"] = true;
  EXPECT_EQ(run("Q2")["text"], "one,t");
  params = {{"temperature", 0}, {"max_new_tokens", 50}, {"stop_token_ids", {';' + 3}}};
  answer = run("Q2");
  EXPECT_EQ(answer["text"], "one,two");
  EXPECT_EQ(finish(answer)["matched"], ';' + 3);
  params = {{"temperature", 0}, {"max_new_tokens", 4}};
  answer = run("Q2");
  EXPECT_EQ(answer["text"], "one,");
  EXPECT_EQ(finish(answer), Json({{"type", "length"}, {"length", 4}}));
  params = {{"temperature", 0}, {"max_new_tokens", 20}, {"min_new_tokens", 15}};
  EXPECT_GE(run("Q2")["output_ids"].size(), 15u);
  params = {{"temperature", 0}, {"max_new_tokens", 1000000}, {"ignore_eos", true}};
  EXPECT_EQ(run("Q1")["output_ids"].size(), 4096u - 2) << "as far as the context goes";
}

TEST_F(GenerateEndpointTest, StreamsTellEverythingSoFarAndEndAsTheWholeAnswer) {
  server_.script().add(server_.tokenizer().encode("Q"),
                       server_.tokenizer().encode("na\u00efve \u20ac5, \U0001F600!;STOP and on"));
  Json body{{"text", "Q"},
            {"return_logprob", true},
            {"top_logprobs_num", 1},
            {"sampling_params", {{"temperature", 0}, {"max_new_tokens", 60}, {"stop", {";STOP"}}}}};
  Json whole = generate(body);
  EXPECT_EQ(whole["text"], "na\u00efve \u20ac5, \U0001F600!");
  body["stream"] = true;
  server_.script().delay = std::chrono::milliseconds(2);
  const std::vector<Json> events = events_of(server_.post("/generate", body));
  ASSERT_GT(events.size(), 3u);
  std::string text;
  size_t num_tokens = 0;
  for (const Json& event : events) {
    const std::string now = event["text"];
    EXPECT_TRUE(now.starts_with(text)) << "'" << now << "' behind '" << text << "'";
    EXPECT_EQ(now.find("\uFFFD"), std::string::npos) << "half a character was shown";
    EXPECT_EQ(now.find(';'), std::string::npos) << "the beginning of a stop string was shown";
    text = now;
    EXPECT_GT(event["output_ids"].size(), num_tokens);
    num_tokens = event["output_ids"].size();
    EXPECT_EQ(event["meta_info"]["output_token_logprobs"].size(), num_tokens);
    EXPECT_EQ(event["meta_info"]["output_top_logprobs"].size(), num_tokens);
    EXPECT_EQ(event["meta_info"]["finish_reason"].is_null(), &event != &events.back());
  }
  Json last = events.back();
  for (Json* answer : {&last, &whole}) {
    (*answer)["meta_info"].erase("id");
    (*answer)["meta_info"].erase("e2e_latency");
    (*answer)["meta_info"].erase("sampling_seed");
  }
  EXPECT_EQ(last, whole);
}

TEST_F(GenerateEndpointTest, IncrementalStreamsTellWhatIsNew) {
  TestServer incremental({.incremental_stream = true});
  const Json body{{"text", {"one", "two"}},
                  {"stream", true},
                  {"return_logprob", true},
                  {"sampling_params",
                   {{"max_new_tokens", 40}, {"sampling_seed", 3}, {"ignore_eos", true}, {"n", 2}}}};
  Json plain = body;
  plain["stream"] = false;
  const Json expected = incremental.post("/generate", plain).json();
  ASSERT_EQ(expected.size(), 4u);
  std::vector<std::string> text(4);
  std::vector<Json> ids(4, Json::array()), log_probs(4, Json::array());
  const auto append = [](const Json& from, Json* to) {
    for (const Json& value : from) to->push_back(value);
  };
  for (const Json& event : events_of(incremental.post("/generate", body))) {
    const size_t i = event["index"];
    text[i] += event["text"].get<std::string>();
    append(event["output_ids"], &ids[i]);
    append(event["meta_info"]["output_token_logprobs"], &log_probs[i]);
    EXPECT_EQ(event["meta_info"]["completion_tokens"], ids[i].size());
  }
  Json seldom = body;
  seldom["sampling_params"]["stream_interval"] = 15;
  std::vector<size_t> counts;
  for (const Json& event : events_of(incremental.post("/generate", seldom))) {
    if (event["index"] == 0) counts.push_back(event["meta_info"]["completion_tokens"]);
  }
  EXPECT_LE(counts.size(), 4u) << "1, 15, 30 and 40, or fewer when the connection was slow";
  EXPECT_EQ(counts.back(), 40u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(text[i], expected[i]["text"]);
    EXPECT_EQ(ids[i], expected[i]["output_ids"]);
    EXPECT_EQ(log_probs[i], expected[i]["meta_info"]["output_token_logprobs"]);
  }
}

TEST(Base64Test, KnownVectors) {
  EXPECT_EQ(base64("", 0), "");
  EXPECT_EQ(base64("f", 1), "Zg==");
  EXPECT_EQ(base64("fo", 2), "Zm8=");
  EXPECT_EQ(base64("foo", 3), "Zm9v");
  EXPECT_EQ(base64("foobar", 6), "Zm9vYmFy");
  EXPECT_EQ(base64("\xff\xfe\xfd", 3), "//79");
}

}  // namespace
}  // namespace fathom
