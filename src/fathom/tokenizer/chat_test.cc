#include "fathom/tokenizer/chat.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat_tokens.h"
#include "fathom/tokenizer/completion.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

using namespace chat_tokens;

// {bos} and the like stand for the markers, so that the expected strings stay readable.
std::string expand(std::string text) {
  const std::pair<std::string, std::string_view> names[] = {
      {"{bos}", kBos},          {"{eos}", kEos},
      {"{U}", kUser},           {"{A}", kAssistant},
      {"{think}", kThinkStart}, {"{/think}", kThinkEnd},
      {"{dsml}", kDsml},        {"{reminder}", kLatestReminder}};
  for (const auto& [name, token] : names) {
    for (size_t at; (at = text.find(name)) != std::string::npos;)
      text.replace(at, name.size(), token);
  }
  return text;
}

std::string encode(const std::string& messages, const std::string& options = "{}") {
  return encode_messages(parse_python_json(messages, "messages"),
                         parse_chat_options(parse_python_json(options, "options"), "options"));
}

void expect_error(const std::function<void()>& body, const std::string& part) {
  try {
    body();
    ADD_FAILURE() << "no error; expected one with: " << part;
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << "got: " << e.what();
  }
}

constexpr char kChat[] = R"({"thinking_mode": "chat"})";
constexpr char kThreeTurns[] =
    R"([{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1", "reasoning_content": "R1"},
        {"role": "user", "content": "Q2"}])";

// Made with the official encoder.
TEST(ChatTest, GoldenStrings) {
  const struct {
    const char *messages, *options, *expected;
  } cases[] = {
      {R"([{"role": "user", "content": "Hi"}])", kChat, "{bos}{U}Hi{A}{/think}"},
      {R"([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}])", "{}",
       "{bos}S{U}Hi{A}{think}"},
      {kThreeTurns, "{}", "{bos}{U}Q1{A}{/think}A1{eos}{U}Q2{A}{think}"},
      {kThreeTurns, R"({"drop_thinking": false})",
       "{bos}{U}Q1{A}{think}R1{/think}A1{eos}{U}Q2{A}{think}"},
      {kThreeTurns, kChat, "{bos}{U}Q1{A}{/think}A1{eos}{U}Q2{A}{/think}"},
      {R"([{"role": "user", "content": "Q"}, {"role": "user", "content": "W"}])", kChat,
       "{bos}{U}Q\n\nW{A}{/think}"},
      {R"([{"role": "system", "content": "S"}])", "{}", "{bos}S"},
      {R"([{"role": "user", "content": "Q"},
           {"role": "assistant", "content": "part", "reasoning_content": "R", "wo_eos": true}])",
       "{}", "{bos}{U}Q{A}{think}R{/think}part"},
      {R"([{"role": "user", "content": "Q", "task": "title"}])", kChat,
       "{bos}{U}Q<\uFF5Ctitle\uFF5C>"},
      {R"([{"role": "user", "content": "Q", "task": "action"}])", kChat,
       "{bos}{U}Q{A}{/think}<\uFF5C"
       "action\uFF5C>"},
      {R"([{"role": "user", "content": "Q"}, {"role": "latest_reminder", "content": "L"},
           {"role": "assistant", "content": "A"}])",
       "{}", "{bos}{U}Q{A}{think}{reminder}L{/think}A{eos}"},
      {R"([{"role": "system", "content": "S", "response_format": {"type":"object"}},
           {"role": "user", "content": "Q"}])",
       kChat,
       "{bos}S\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to "
       "reply:\n{\"type\": \"object\"}{U}Q{A}{/think}"},
  };
  for (const auto& c : cases)
    EXPECT_EQ(encode(c.messages, c.options), expand(c.expected)) << c.messages;
}

TEST(ChatTest, GoldenConversationWithTools) {
  const std::string text = encode(R"([
    {"role": "system", "content": "S", "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"role": "user", "content": "Q"},
    {"role": "assistant", "reasoning_content": "R", "content": null, "tool_calls": [
      {"id": "a", "function": {"name": "f", "arguments": "{\"x\": 1, \"y\": \"z\"}"}},
      {"id": "b", "function": {"name": "g", "arguments": "not json"}}]},
    {"role": "tool", "tool_call_id": "b", "content": "rb"},
    {"role": "tool", "tool_call_id": "a", "content": "ra"}])");
  EXPECT_EQ(
      text.substr(text.find(kUser)),
      expand("{U}Q{A}{think}R{/think}\n\n<{dsml}tool_calls>\n<{dsml}invoke name=\"f\">\n"
             "<{dsml}parameter name=\"x\" string=\"false\">1</{dsml}parameter>\n"
             "<{dsml}parameter name=\"y\" string=\"true\">z</{dsml}parameter>\n"
             "</{dsml}invoke>\n<{dsml}invoke name=\"g\">\n"
             "<{dsml}parameter name=\"arguments\" string=\"true\">not json</{dsml}parameter>\n"
             "</{dsml}invoke>\n</{dsml}tool_calls>{eos}"
             "{U}<tool_result>ra</tool_result>\n\n<tool_result>rb</tool_result>{A}{think}"));
  EXPECT_EQ(text.substr(0, text.find("You have")), expand("{bos}S\n\n## Tools\n\n"));
  const size_t schemas = text.find("### Available Tool Schemas");
  EXPECT_EQ(text.substr(schemas, text.find(kUser) - schemas),
            "### Available Tool Schemas\n\n{\"name\": \"f\"}\n\nYou MUST strictly follow the above "
            "defined tool name and parameter schemas to invoke tool calls.\n");
}

TEST(ChatTest, ToolsOptionGoesThroughTheSchemaOntoTheSystemMessage) {
  const std::string tools =
      R"({"thinking_mode": "chat", "tools": [
           {"function": {"name": "f", "parameters": {"b": 1, "a": 1.0}, "extra": 1}},
           {"type": "function", "function": {"strict": true, "name": "g", "description": "D"}}]})";
  const std::string schemas =
      "{\"description\": null, \"name\": \"f\", \"parameters\": {\"b\": 1, \"a\": 1.0}, "
      "\"strict\": false}\n"
      "{\"description\": \"D\", \"name\": \"g\", \"parameters\": null, \"strict\": true}\n\nYou "
      "MUST";
  const std::string created = encode(R"([{"role": "user", "content": "Q"}])", tools);
  EXPECT_NE(created.find(schemas), std::string::npos) << created;
  EXPECT_TRUE(created.starts_with(expand("{bos}\n\n## Tools"))) << created;
  const std::string attached =
      encode(R"([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])", tools);
  EXPECT_TRUE(attached.starts_with(expand("{bos}S\n\n## Tools"))) << attached;
  EXPECT_TRUE(attached.ends_with(expand("{U}Q{A}{/think}")));
}

TEST(ChatTest, ToolsKeepTheReasoningOfEarlierTurns) {
  const std::string messages = R"([
    {"role": "system", "content": "", "tools": [{"function": {"name": "f"}}]},
    {"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1", "reasoning_content": "R1"},
    {"role": "user", "content": "Q2"}])";
  EXPECT_NE(encode(messages).find(expand("{U}Q1{A}{think}R1{/think}A1{eos}")), std::string::npos);
}

TEST(ChatTest, DroppingForgetsOldDeveloperTurns) {
  const std::string messages =
      R"([{"role": "developer", "content": "D1"}, {"role": "assistant", "content": "A1"},
                                   {"role": "developer", "content": "D2"}])";
  EXPECT_EQ(encode(messages), expand("{bos}A1{eos}{U}D2{A}{think}"));
  EXPECT_EQ(encode(messages, kChat), expand("{bos}{U}D1{A}{/think}A1{eos}{U}D2{A}{/think}"));
}

TEST(ChatTest, ContextIsNotRepeated) {
  EXPECT_EQ(
      encode(
          R"([{"role": "user", "content": "Q2"}])",
          R"({"context": [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]})"),
      expand("{U}Q2{A}{think}"));
}

TEST(ChatTest, EffortPrefixComesFirstInThinkingModeOnly) {
  const std::string user = R"([{"role": "user", "content": "Q"}])";
  const std::string text = encode(user, R"({"reasoning_effort": "max"})");
  EXPECT_TRUE(text.starts_with(
      expand("{bos}Reasoning Effort: Absolute maximum with no shortcuts permitted.\n")));
  EXPECT_TRUE(text.ends_with(expand("no assumption is left unchecked.\n\n{U}Q{A}{think}")));
  EXPECT_EQ(encode(user, R"({"reasoning_effort": "high"})"), expand("{bos}{U}Q{A}{think}"));
  EXPECT_EQ(encode(user, R"({"reasoning_effort": "max", "thinking_mode": "chat"})"),
            expand("{bos}{U}Q{A}{/think}"));
}

TEST(ChatTest, OptionsResolveAsTheTemplateDoes) {
  const std::string user = R"([{"role": "user", "content": "Q"}])";
  EXPECT_EQ(encode(user, R"({"thinking": false})"), encode(user, kChat));
  EXPECT_EQ(encode(user, R"({"enable_thinking": true, "thinking": false})"), encode(user));
  EXPECT_EQ(encode(user, R"({"thinking_mode": "thinking", "enable_thinking": false})"),
            encode(user));
  EXPECT_EQ(encode(user, R"({"add_default_bos_token": false})"), expand("{U}Q{A}{think}"));
  EXPECT_EQ(encode(user, R"({"add_generation_prompt": false})"), expand("{bos}{U}Q"));
  EXPECT_EQ(
      encode(R"([{"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}])",
             R"({"add_generation_prompt": false})"),
      expand("{bos}{U}<tool_result>a\n\n[Unsupported image]</tool_result>"));
}

TEST(ChatTest, WrongFieldsAreNamed) {
  const auto refused = [](const std::string& messages, const std::string& part) {
    expect_error([&] { encode(messages); }, part);
  };
  refused(R"({"role": "user"})", "messages: a list");
  refused(R"(["hello"])", "messages[0]: an object");
  refused(R"([{"content": "x"}])", "messages[0].role: a string is expected");
  refused(R"([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}])",
          "messages[1].role");
  refused(R"([{"role": "user", "content": 3}])",
          "messages[0].content: a string is expected\n  got: 3");
  refused(R"([{"role": "user", "content": null}])", "messages[0].content");
  refused(R"([{"role": "developer", "content": ""}])", "messages[0].content");
  refused(R"([{"role": "user", "content": "x", "task": "dance"}])", "messages[0].task");
  refused(R"([{"role": "assistant", "wo_eos": 1}])", "messages[0].wo_eos");
  refused(R"([{"role": "assistant", "tool_calls": [{"name": "f"}]}])", "messages[0].tool_calls[0]");
  refused(R"([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}])",
          "messages[0].tool_calls[0].function.name");
  refused(
      R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}])",
      "messages[0].tool_calls[0].function.arguments");
  refused(R"([{"role": "system", "tools": [{"name": "f"}]}])", "messages[0].tools[0]");
  refused(R"([{"role": "tool", "content": ["x"]}])", "messages[0].content[0]");
  const auto option = [](const std::string& options, const std::string& part) {
    expect_error([&] { encode(R"([{"role": "user", "content": "Q"}])", options); }, part);
  };
  option(R"({"thinking_mode": "deep"})", "options.thinking_mode");
  option(R"({"reasoning_effort": "low"})", "options.reasoning_effort");
  option(R"({"drop_thinking": "yes"})", "options.drop_thinking");
  option(R"({"temperature": 1})", "unknown chat option \"temperature\"");
  option(R"({"tools": [{"function": {"parameters": {}}}]})", "tools[0].function.name");
  option(R"({"tools": [{"name": "f"}]})", "tools[0].function");
  option(R"({"context": [{"role": "user", "content": 1}]})", "context[0].content");
}

TEST(PythonJsonTest, FloatsAsRepr) {
  const std::pair<double, const char*> cases[] = {{1.0, "1.0"},
                                                  {-0.0, "-0.0"},
                                                  {0.1, "0.1"},
                                                  {1e-5, "1e-05"},
                                                  {0.0001, "0.0001"},
                                                  {1.5e-7, "1.5e-07"},
                                                  {1e15, "1000000000000000.0"},
                                                  {1e16, "1e+16"},
                                                  {1e22, "1e+22"},
                                                  {123456789012345680.0, "1.2345678901234568e+17"},
                                                  {5e-324, "5e-324"},
                                                  {1e300, "1e+300"},
                                                  {1.0 / 3, "0.3333333333333333"},
                                                  {-2.5, "-2.5"},
                                                  {1234567.125, "1234567.125"},
                                                  {INFINITY, "Infinity"}};
  for (const auto& [value, text] : cases) EXPECT_EQ(python_float_repr(value), text);
}

TEST(PythonJsonTest, ReadsAndWritesAsPythonDoes) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"b":1,"a":[true,false,null,{}]})", R"({"b": 1, "a": [true, false, null, {}]})"},
      {"[123456789012345678901234567890, -99999999999999999999, 18446744073709551615, -0]",
       "[123456789012345678901234567890, -99999999999999999999, 18446744073709551615, 0]"},
      {"[1.0, 1E5, 1e400, -1e400, 1e-400, NaN, -Infinity]",
       "[1.0, 100000.0, Infinity, -Infinity, 0.0, NaN, -Infinity]"},
      {R"("\u00e9\ud83d\ude00\/\u0001\u001f\u007f\b\f\n\r\t\"\\")",
       "\"\u00e9\U0001F600/\\u0001\\u001f\x7f\\b\\f\\n\\r\\t\\\"\\\\\""},
      {" [ ] ", "[]"},
  };
  for (const auto& [in, out] : cases) EXPECT_EQ(dump_python_json(parse_python_json(in, "x")), out);
  EXPECT_EQ(dump_python_json(
                parse_python_json(R"({"a": 1, "b": 2, "a": 3})", "x", DuplicateKeys::kLastWins)),
            R"({"a": 3, "b": 2})");
}

TEST(PythonJsonTest, BrokenTextNamesOriginAndPosition) {
  for (const char* text : {"",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "{\"a\" 1}",
                           "{a:1}",
                           "01",
                           "1.",
                           "-",
                           "+1",
                           ".5",
                           "1e",
                           "\"a",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"\\udc00\"",
                           "\"\x01\"",
                           "tru",
                           "[1] 2",
                           "'a'",
                           "{\"a\":1,\"a\":2}",
                           "\"\xff\"",
                           "nul"}) {
    expect_error([&] { parse_python_json(text, "line 7"); }, "line 7: not valid JSON at byte ");
  }
  expect_error([] { parse_python_json(std::string(100000, '['), "x"); }, "nested deeper");
  EXPECT_NO_THROW(parse_python_json(std::string(900, '[') + std::string(900, ']'), "x"));
}

TEST(CompletionTest, RenderedAnswersReadBack) {
  const std::string messages = R"([{"role": "user", "content": "Q"}, {"role": "assistant",
    "content": "A", "reasoning_content": "R\n\nR2", "tool_calls": [
      {"function": {"name": "f", "arguments": "{\"x\": [1, 1e-05], \"y\": \"z\\n\\\"<\\\"\", \"\": null}"}},
      {"function": {"name": "g", "arguments": "{}"}}]}])";
  for (const ThinkingMode mode : {ThinkingMode::kThinking, ThinkingMode::kChat}) {
    ChatOptions options;
    options.thinking_mode = mode;
    Json json = parse_python_json(messages, "x");
    const std::string whole = encode_messages(json, options);
    const size_t start = whole.find('Q') + 1 + kAssistant.size() +
                         (mode == ThinkingMode::kThinking ? kThinkStart : kThinkEnd).size();
    const ParsedCompletion completion = parse_completion(whole.substr(start), mode);
    ASSERT_TRUE(completion.ok()) << completion.error;
    EXPECT_EQ(completion.reasoning_content, mode == ThinkingMode::kThinking ? "R\n\nR2" : "");
    EXPECT_EQ(completion.content, "A");
    ASSERT_EQ(completion.tool_calls.size(), 2u);
    EXPECT_EQ(completion.tool_calls[0].arguments,
              R"({"x": [1, 1e-05], "y": "z\n\"<\"", "": null})");
    EXPECT_EQ(completion.tool_calls[1].name, "g");
    EXPECT_EQ(completion.tool_calls[1].arguments, "{}");
    json[1] = message_of(completion);
    EXPECT_EQ(encode_messages(json, options), whole);
  }
}

TEST(CompletionTest, MalformedAnswersAreStatusesWithAReason) {
  const auto error = [](const std::string& text, ThinkingMode mode = ThinkingMode::kChat) {
    const ParsedCompletion completion = parse_completion(expand(text), mode);
    EXPECT_EQ(completion.content, completion.ok() ? completion.content : "");
    return completion.error;
  };
  EXPECT_EQ(error("fine{eos}"), "");
  EXPECT_EQ(error("R{/think}fine{eos}", ThinkingMode::kThinking), "");
  EXPECT_NE(error("no end").find("end token is missing"), std::string::npos);
  EXPECT_NE(error("R{eos}", ThinkingMode::kThinking).find("</think>"), std::string::npos);
  EXPECT_NE(error("R\n\n<{dsml}tool_calls>\n{/think}{eos}", ThinkingMode::kThinking)
                .find("before </think>"),
            std::string::npos);
  EXPECT_NE(error("a{eos}b").find("after the end"), std::string::npos);
  EXPECT_NE(error("a{think}b{eos}").find("<think>"), std::string::npos);
  EXPECT_NE(error("a{bos}b{eos}").find("marker"), std::string::npos);
  const std::string open = "\n\n<{dsml}tool_calls>\n", close = "</{dsml}tool_calls>{eos}";
  const std::string p = "<{dsml}parameter name=\"x\" string=\"false\">1</{dsml}parameter>\n";
  const auto call = [](const std::string& body) {
    return "<{dsml}invoke name=\"f\">\n" + body + "</{dsml}invoke>\n";
  };
  EXPECT_EQ(error(open + call(p) + close), "");
  EXPECT_NE(error(open + call(p + p) + close).find("twice"), std::string::npos);
  EXPECT_NE(error(open + call(p)).find("does not end"), std::string::npos);
  EXPECT_NE(error(open + call(p) + "x" + close).find("newline"), std::string::npos);
  EXPECT_NE(error(open + call(p) + "</{dsml}tool_calls>x{eos}").find("between"), std::string::npos);
  EXPECT_NE(error(open + "<{dsml}invoke>\n</{dsml}invoke>\n" + close).find("no name"),
            std::string::npos);
  EXPECT_NE(
      error(open + call("<{dsml}parameter name=\"x\">1</{dsml}parameter>\n") + close).find("form"),
      std::string::npos);
  EXPECT_NE(error(open + "<{dsml}invoke name=\"f\">\n" + "<{dsml}parameter").find("does not end"),
            std::string::npos);
}

}  // namespace
}  // namespace fathom
