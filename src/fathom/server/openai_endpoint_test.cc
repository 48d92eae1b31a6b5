// OpenAI's interface: prompts rendered by the official encoder, answers taken apart, streams.
#include <gtest/gtest.h>

#include "fathom/server/test_server.h"

namespace fathom {
namespace {

const std::string kCall =
    "\n\n<\uFF5CDSML\uFF5Ctool_calls>\n<\uFF5CDSML\uFF5Cinvoke name=\"add\">\n"
    "<\uFF5CDSML\uFF5Cparameter name=\"a\" string=\"false\">2</\uFF5CDSML\uFF5Cparameter>\n"
    "</\uFF5CDSML\uFF5Cinvoke>\n</\uFF5CDSML\uFF5Ctool_calls>";

class OpenAiEndpointTest : public ::testing::Test {
 protected:
  Json ask_for(const std::string& path, const Json& body) {
    const Reply reply = server_.post(path, body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json();
  }
  Json chat(const Json& body) { return ask_for("/v1/chat/completions", body); }
  void script(const std::string& prompt, const std::string& answer) {
    server_.script().add(server_.tokenizer().encode(prompt), server_.tokenizer().encode(answer));
  }
  void script_chat(const Json& messages, const ChatOptions& options, const std::string& answer) {
    script(encode_messages(messages, options), answer);
  }
  const Json messages_ = {{{"role", "user"}, {"content", "Hi"}}};
  TestServer server_;
};

TEST_F(OpenAiEndpointTest, AChatThinksAndAnswers) {
  script_chat(messages_, {}, "Hm, a greeting.</think>Hello \u20ac!");
  const Json response = chat({{"model", "scripted"}, {"messages", messages_}, {"temperature", 0}});
  EXPECT_EQ(response["object"], "chat.completion");
  EXPECT_TRUE(response["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(response["model"], "scripted");
  ASSERT_EQ(response["choices"].size(), 1u);
  const Json& choice = response["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["reasoning_content"], "Hm, a greeting.");
  EXPECT_EQ(choice["message"]["content"], "Hello \u20ac!");
  EXPECT_TRUE(choice["message"]["tool_calls"].is_null());
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(choice["logprobs"].is_null());
  const Json& usage = response["usage"];
  const int64_t num_prompt = static_cast<int64_t>(
      server_.tokenizer().encode(encode_messages(messages_, ChatOptions())).size());
  EXPECT_EQ(usage["prompt_tokens"], num_prompt);
  EXPECT_EQ(usage["completion_tokens"], 15 + 1 + 10 + 1);
  EXPECT_EQ(usage["total_tokens"], num_prompt + 27);
  EXPECT_EQ(usage["completion_tokens_details"]["reasoning_tokens"], 16);
}

TEST_F(OpenAiEndpointTest, ThinkingIsChosenInEveryKnownWay) {
  ChatOptions no_thinking;
  no_thinking.thinking_mode = ThinkingMode::kChat;
  ChatOptions most;
  most.reasoning_effort = "max";
  script_chat(messages_, {}, "r</think>thought");
  script_chat(messages_, no_thinking, "did not think");
  script_chat(messages_, most, "r</think>thought hard");
  const auto content = [&](const Json& more) {
    Json body{{"messages", messages_}, {"temperature", 0}};
    body.update(more);
    return chat(body)["choices"][0]["message"]["content"].get<std::string>();
  };
  EXPECT_EQ(content(Json::object()), "thought");
  EXPECT_EQ(content({{"chat_template_kwargs", {{"thinking", false}}}}), "did not think");
  EXPECT_EQ(content({{"chat_template_kwargs", {{"enable_thinking", false}}}}), "did not think");
  EXPECT_EQ(content({{"thinking", {{"type", "disabled"}}}}), "did not think");
  EXPECT_EQ(content({{"thinking", {{"type", "enabled"}}}}), "thought");
  EXPECT_EQ(content({{"reasoning_effort", "none"}}), "did not think");
  EXPECT_EQ(content({{"reasoning_effort", "high"}}), "thought");
  EXPECT_EQ(content({{"reasoning_effort", "max"}}), "thought hard");
}

TEST_F(OpenAiEndpointTest, ToolsAreOfferedAndCallsComeBack) {
  const Json tools = {{{"type", "function"},
                       {"function",
                        {{"name", "add"},
                         {"description", "adds"},
                         {"parameters", {{"type", "object"}, {"properties", Json::object()}}}}}}};
  ChatOptions options;
  options.tools = tools;
  script_chat(messages_, options, "need a tool</think>Calling." + kCall);
  script_chat(messages_, {}, "no tools</think>Alone.");
  Json body{{"messages", messages_}, {"tools", tools}, {"temperature", 0}, {"tool_choice", "auto"}};
  const Json response = chat(body);
  const Json& message = response["choices"][0]["message"];
  EXPECT_EQ(message["content"], "Calling.");
  ASSERT_EQ(message["tool_calls"].size(), 1u);
  EXPECT_EQ(message["tool_calls"][0]["type"], "function");
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "add");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], R"({"a": 2})");
  EXPECT_FALSE(message["tool_calls"][0]["id"].get<std::string>().empty());
  EXPECT_EQ(response["choices"][0]["finish_reason"], "tool_calls");

  // The conversation goes on with the message as it came.
  Json longer = messages_;
  longer.push_back(message);
  longer.push_back(
      {{"role", "tool"}, {"tool_call_id", message["tool_calls"][0]["id"]}, {"content", "5"}});
  script_chat(longer, options, "so</think>It is 5.");
  Json next = body;
  next["messages"] = longer;
  EXPECT_EQ(chat(next)["choices"][0]["message"]["content"], "It is 5.");

  body["tool_choice"] = "none";
  EXPECT_EQ(chat(body)["choices"][0]["message"]["content"], "Alone.");

  body["tool_choice"] = "auto";
  body["stream"] = true;
  server_.script().delay = std::chrono::milliseconds(1);
  Json calls = Json::array();
  std::string content, reasoning, finish;
  for (const Json& event : events_of(server_.post("/v1/chat/completions", body))) {
    const Json& choice = event["choices"][0];
    content += choice["delta"].value("content", "");
    reasoning += choice["delta"].value("reasoning_content", "");
    if (choice["delta"].contains("tool_calls")) calls = choice["delta"]["tool_calls"];
    if (!choice["finish_reason"].is_null()) finish = choice["finish_reason"];
  }
  EXPECT_EQ(content, "Calling.");
  EXPECT_EQ(reasoning, "need a tool");
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0]["index"], 0);
  EXPECT_EQ(calls[0]["function"]["arguments"], R"({"a": 2})");
  EXPECT_EQ(finish, "tool_calls");
}

TEST_F(OpenAiEndpointTest, ContentMayBeAListOfParts) {
  const Json parts = {
      {{"role", "user"},
       {"content", {{{"type", "text"}, {"text", "one"}}, {{"type", "text"}, {"text", "two"}}}}}};
  script_chat({{{"role", "user"}, {"content", "one two"}}}, {}, "r</think>yes");
  EXPECT_EQ(chat({{"messages", parts}, {"temperature", 0}})["choices"][0]["message"]["content"],
            "yes");
}

TEST_F(OpenAiEndpointTest, TheThinkingIsToldBeforeTheContentHoweverManyTokensComeAtOnce) {
  script_chat(messages_, {}, "r</think>c");
  for (int i = 0; i < 20; ++i) {  // without delay, events hold what the engine was ahead
    const Json body{{"messages", messages_}, {"temperature", 0}, {"stream", true}};
    std::string told;
    for (const Json& event : events_of(server_.post("/v1/chat/completions", body))) {
      const Json& delta = event["choices"][0]["delta"];
      EXPECT_FALSE(delta.contains("reasoning_content") && delta.contains("content")) << delta;
      told += delta.value("reasoning_content", "") + delta.value("content", "");
    }
    EXPECT_EQ(told, "rc");
  }
}

TEST_F(OpenAiEndpointTest, AChatStreams) {
  script_chat(messages_, {}, "thinking it over</think>na\u00efve \U0001F600 answer");
  server_.script().delay = std::chrono::milliseconds(1);
  const Json body{{"messages", messages_}, {"temperature", 0},
                  {"stream", true},        {"logprobs", true},
                  {"top_logprobs", 2},     {"stream_options", {{"include_usage", true}}}};
  const std::vector<Json> events = events_of(server_.post("/v1/chat/completions", body));
  ASSERT_GT(events.size(), 4u);
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(events[0]["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", ""}}));
  std::string content, reasoning;
  Json tokens = Json::array();
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    EXPECT_EQ(events[i]["id"], events[0]["id"]);
    EXPECT_TRUE(events[i]["usage"].is_null());
    const Json& choice = events[i]["choices"][0];
    if (!choice["delta"].value("content", "").empty()) {
      EXPECT_EQ(reasoning, "thinking it over");
    }
    content += choice["delta"].value("content", "");
    reasoning += choice["delta"].value("reasoning_content", "");
    if (choice["logprobs"].is_null()) continue;
    for (const Json& token : choice["logprobs"]["content"]) tokens.push_back(token);
  }
  EXPECT_EQ(content, "na\u00efve \U0001F600 answer");
  const Json& end = events[events.size() - 2]["choices"][0];
  EXPECT_EQ(end["finish_reason"], "stop");
  EXPECT_EQ(end["matched_stop"], 1);
  const Json& last = events.back();
  EXPECT_EQ(last["choices"], Json::array());
  EXPECT_EQ(last["usage"]["completion_tokens"], tokens.size());

  Json whole = body;
  whole["stream"] = false;
  whole.erase("stream_options");
  const Json at_once = chat(whole)["choices"][0];
  EXPECT_EQ(at_once["logprobs"]["content"], tokens);
  EXPECT_EQ(tokens[0]["token"], "t");
  EXPECT_EQ(tokens[0]["bytes"], Json({'t'}));
  EXPECT_EQ(tokens[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(tokens[0]["top_logprobs"][0]["token"], "t");
  EXPECT_EQ(tokens[0]["top_logprobs"][0]["logprob"], tokens[0]["logprob"]);
}

TEST_F(OpenAiEndpointTest, SeveralChoicesAndTokenLimits) {
  const Json body{{"messages", messages_},
                  {"n", 3},
                  {"max_completion_tokens", 5},
                  {"seed", 4},
                  {"ignore_eos", true}};
  const Json response = chat(body);
  ASSERT_EQ(response["choices"].size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(response["choices"][i]["index"], i);
    EXPECT_EQ(response["choices"][i]["finish_reason"], "length");
  }
  EXPECT_EQ(response["usage"]["completion_tokens"], 15);
  const Json again = chat(body);
  EXPECT_EQ(again["choices"][1]["message"], response["choices"][1]["message"])
      << "the seed decides";
  Json limit = body;
  limit.erase("max_completion_tokens");
  limit["max_tokens"] = 2;
  EXPECT_EQ(chat(limit)["usage"]["completion_tokens"], 6);
}

TEST_F(OpenAiEndpointTest, MetaInfoForTrainers) {
  const Json body{
      {"messages", messages_}, {"max_tokens", 4},          {"seed", 4},
      {"ignore_eos", true},    {"return_meta_info", true}, {"return_routed_experts", true}};
  const Json choice = chat(body)["choices"][0];
  const Json& meta = choice["meta_info"];
  EXPECT_EQ(meta["output_token_logprobs"].size(), 4u);
  EXPECT_TRUE(meta.contains("routed_experts"));
  Json by_ids{{"input_ids", server_.tokenizer().encode(encode_messages(messages_, ChatOptions()))},
              {"max_tokens", 4},
              {"seed", 4},
              {"ignore_eos", true},
              {"return_meta_info", true}};
  EXPECT_EQ(chat(by_ids)["choices"][0]["meta_info"]["output_token_logprobs"],
            meta["output_token_logprobs"]);
  Json streamed = body;
  streamed["stream"] = true;
  EXPECT_EQ(server_.post("/v1/chat/completions", streamed).status, 400);
}

TEST_F(OpenAiEndpointTest, CompletionsWithEchoAndLogProbs) {
  script("Once", " upon a time");
  const Json response = ask_for("/v1/completions", {{"model", "default"},
                                                    {"prompt", "Once"},
                                                    {"max_tokens", 5},
                                                    {"temperature", 0},
                                                    {"echo", true},
                                                    {"logprobs", 2}});
  EXPECT_EQ(response["object"], "text_completion");
  const Json& choice = response["choices"][0];
  EXPECT_EQ(choice["text"], "Once upon");
  EXPECT_EQ(choice["finish_reason"], "length");
  const Json& lp = choice["logprobs"];
  EXPECT_EQ(lp["tokens"], Json({"O", "n", "c", "e", " ", "u", "p", "o", "n"}));
  EXPECT_EQ(lp["text_offset"], Json({0, 1, 2, 3, 4, 5, 6, 7, 8}));
  ASSERT_EQ(lp["token_logprobs"].size(), 9u);
  EXPECT_TRUE(lp["token_logprobs"][0].is_null());
  EXPECT_TRUE(lp["token_logprobs"][1].is_number());
  EXPECT_TRUE(lp["top_logprobs"][0].is_null());
  EXPECT_EQ(lp["top_logprobs"][8].size(), 2u);
  EXPECT_EQ(lp["top_logprobs"][8]["n"], lp["token_logprobs"][8]);
  const Json scored = ask_for(
      "/v1/completions", {{"prompt", "Once"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}});
  EXPECT_EQ(scored["choices"][0]["text"], "Once");
  EXPECT_EQ(scored["choices"][0]["logprobs"]["token_logprobs"].size(), 4u);
  EXPECT_EQ(scored["usage"]["completion_tokens"], 0);
}

TEST_F(OpenAiEndpointTest, AStreamedEchoBringsThePromptsLogProbs) {
  for (const int64_t max_tokens : {0, 1, 7}) {
    Json body{{"prompt", "Once"}, {"max_tokens", max_tokens}, {"seed", 4}, {"n", 2}, {"echo", true},
              {"logprobs", 2}};
    const Json whole = ask_for("/v1/completions", body);
    body["stream"] = true;
    for (const int delay : {0, 1}) {
      server_.script().delay = std::chrono::milliseconds(delay);
      std::vector<Json> got(2);
      std::vector<std::string> text(2);
      for (const Json& event : events_of(server_.post("/v1/completions", body))) {
        for (const Json& choice : event["choices"]) {
          const size_t i = choice["index"];
          text[i] += choice["text"].get<std::string>();
          for (const auto& [key, values] : choice["logprobs"].items()) {
            for (const Json& value : values) got[i][key].push_back(value);
          }
        }
      }
      for (size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(got[i], whole["choices"][i]["logprobs"]) << max_tokens;
        EXPECT_EQ(text[i], whole["choices"][i]["text"]);
      }
    }
  }
}

TEST_F(OpenAiEndpointTest, UsageTellsCachedTokensOfEachPromptOnce) {
  const Json body{{"prompt", std::string(100, 'a')}, {"max_tokens", 2}, {"n", 3}};
  EXPECT_EQ(ask_for("/v1/completions", body)["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  const Json again = ask_for("/v1/completions", body);
  EXPECT_EQ(again["usage"]["prompt_tokens_details"]["cached_tokens"], 96);  // whole pages of 16
}

TEST_F(OpenAiEndpointTest, CompletionsOfSeveralPromptsStream) {
  const Json body{{"prompt", {{0, 70}, {0, 71}}}, {"max_tokens", 12}, {"seed", 8}, {"n", 2}};
  const Json whole = ask_for("/v1/completions", body);
  ASSERT_EQ(whole["choices"].size(), 4u);
  Json streamed = body;
  streamed["stream"] = true;
  server_.script().delay = std::chrono::milliseconds(1);
  std::vector<std::string> text(4), finish(4);
  for (const Json& event : events_of(server_.post("/v1/completions", streamed))) {
    const Json& choice = event["choices"][0];
    const size_t i = choice["index"];
    text[i] += choice["text"].get<std::string>();
    if (!choice["finish_reason"].is_null()) finish[i] = choice["finish_reason"];
  }
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(text[i], whole["choices"][i]["text"]);
    EXPECT_EQ(finish[i], whole["choices"][i]["finish_reason"]);
  }
  const Json default_length = ask_for("/v1/completions", {{"prompt", "x"}, {"ignore_eos", true}});
  EXPECT_EQ(default_length["usage"]["completion_tokens"], 16);
}

}  // namespace
}  // namespace fathom
