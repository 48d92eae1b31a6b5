// Answers taken apart, however they are cut into pieces.
#include "fathom/server/chat_parser.h"

#include <gtest/gtest.h>

#include "fathom/server/answer_text.h"
#include "fathom/server/scripted_model.h"

namespace fathom {
namespace {

const std::string kCall =
    "\n\n<\uFF5CDSML\uFF5Ctool_calls>\n<\uFF5CDSML\uFF5Cinvoke name=\"get_weather\">\n"
    "<\uFF5CDSML\uFF5Cparameter name=\"city\" string=\"true\">Paris</\uFF5CDSML\uFF5Cparameter>\n"
    "<\uFF5CDSML\uFF5Cparameter name=\"days\" string=\"false\">3</\uFF5CDSML\uFF5Cparameter>\n"
    "</\uFF5CDSML\uFF5Cinvoke>\n</\uFF5CDSML\uFF5Ctool_calls>";

struct Parts {
  std::string reasoning, content;
  std::vector<ToolCall> calls;
};

/// @param step  bytes that the text grows by from piece to piece.
Parts parse(const std::string& text, ThinkingMode mode, size_t step) {
  ChatParser parser(mode);
  Parts parts;
  const auto add = [&](const ChatParser::Delta& delta) {
    parts.reasoning += delta.reasoning;
    parts.content += delta.content;
  };
  for (size_t end = 0; end < text.size(); end += step) add(parser.feed(text.substr(0, end)));
  add(parser.finish(text));
  parts.calls = parser.tool_calls();
  return parts;
}

TEST(ChatParserTest, PartsDoNotDependOnThePieces) {
  for (const size_t step : {1u, 2u, 3u, 7u, 50u, 10000u}) {
    Parts parts = parse("Let me see.</think>It is 4." + kCall, ThinkingMode::kThinking, step);
    EXPECT_EQ(parts.reasoning, "Let me see.");
    EXPECT_EQ(parts.content, "It is 4.");
    ASSERT_EQ(parts.calls.size(), 1u);
    EXPECT_EQ(parts.calls[0].name, "get_weather");
    EXPECT_EQ(parts.calls[0].arguments, R"({"city": "Paris", "days": 3})");

    parts = parse("plain </thin", ThinkingMode::kChat, step);
    EXPECT_EQ(parts.content, "plain </thin");
    EXPECT_EQ(parts.reasoning, "");

    parts = parse(kCall, ThinkingMode::kChat, step);
    EXPECT_EQ(parts.content, "");
    EXPECT_EQ(parts.calls.size(), 1u);

    parts = parse("a\n\n<\uFF5CDSM", ThinkingMode::kChat, step);
    EXPECT_EQ(parts.content, "a\n\n<\uFF5CDSM") << "the beginning of a marker that does not come";
  }
}

TEST(ChatParserTest, NothingOfAMalformedAnswerIsLost) {
  for (const size_t step : {1u, 5u, 10000u}) {
    Parts parts = parse("never ends" + kCall, ThinkingMode::kThinking, step);
    EXPECT_EQ(parts.reasoning, "never ends" + kCall);
    EXPECT_EQ(parts.content, "");
    EXPECT_TRUE(parts.calls.empty());

    const std::string cut = kCall.substr(0, kCall.size() - 10);
    parts = parse("yes" + cut, ThinkingMode::kChat, step);
    EXPECT_EQ(parts.content, "yes" + cut);
    EXPECT_TRUE(parts.calls.empty());

    parts = parse("yes" + kCall + " and more", ThinkingMode::kChat, step);
    EXPECT_EQ(parts.content, "yes" + kCall + " and more");
  }
}

TEST(ChatParserTest, PartsAreToldAsSoonAsTheyAreCertain) {
  ChatParser parser(ThinkingMode::kThinking);
  EXPECT_EQ(parser.feed("abc").reasoning, "abc");
  EXPECT_TRUE(parser.feed("abc</thi").empty());
  EXPECT_EQ(parser.feed("abc</thimble").reasoning, "</thimble");
  const ChatParser::Delta both = parser.feed("abc</thimble!</think>yes");
  EXPECT_EQ(both.reasoning, "!");
  EXPECT_EQ(both.content, "yes");
  EXPECT_TRUE(parser.feed("abc</thimble!</think>yes\n").empty());
  EXPECT_EQ(parser.feed("abc</thimble!</think>yes\n\nno").content, "\n\nno");
}

TEST(ChatParserTest, TheEndTokensTextIsNoContent) {
  ChatParser parser(ThinkingMode::kChat);
  EXPECT_EQ(parser.finish("yes<\uFF5Cend\u2581of\u2581sentence\uFF5C>").content, "yes");
}

TEST(ChatParserTest, ReasoningTokensAreCounted) {
  const Tokenizer tokenizer = make_byte_tokenizer();
  const std::vector<int32_t> ids = tokenizer.encode("ab</think>c");
  EXPECT_EQ(num_reasoning_tokens(ids, ThinkingMode::kThinking, tokenizer), 3);
  EXPECT_EQ(num_reasoning_tokens(ids, ThinkingMode::kChat, tokenizer), 0);
  EXPECT_EQ(num_reasoning_tokens(tokenizer.encode("abc"), ThinkingMode::kThinking, tokenizer), 3);
}

TEST(AnswerTextTest, ShownTextOnlyGrowsAndEndsAsTheWholeText) {
  const Tokenizer tokenizer = make_byte_tokenizer();
  const std::string answers[] = {"na\u00efve \u20ac \U0001F600 end",
                                 "bro\xE2\x82ken\xFF bytes \xF0\x9F", "aaaaab", "stopped he",
                                 "x<\uFF5Cend\u2581of\u2581sentence\uFF5C>y"};
  const std::vector<std::string> stop = {"aab", "here", "xyz"};
  for (const std::string& answer : answers) {
    for (const bool skip : {false, true}) {
      std::vector<int32_t> ids;
      for (const char c : answer) ids.push_back(3 + static_cast<unsigned char>(c));
      if (answer[0] == 'x') ids = tokenizer.encode(answer);
      AnswerText text(&tokenizer, {.skip_special_tokens = skip}, stop);
      Completion c;
      c.finish_reason = FinishReason::kLength;
      std::string before;
      for (const int32_t id : ids) {
        text.add(id);
        c.token_ids.push_back(id);
        if (answer == "aaaaab" && id == 3 + 'b') c.matched_stop = "aab";
        const std::string now = text.shown();
        EXPECT_TRUE(now.starts_with(before)) << now << " behind " << before;
        before = now;
      }
      if (!c.matched_stop.empty()) c.finish_reason = FinishReason::kStop;
      const std::string whole = text.finish(c);
      EXPECT_TRUE(!c.matched_stop.empty() || whole.starts_with(before)) << whole << " | " << before;
      AnswerText at_once(&tokenizer, {.skip_special_tokens = skip}, stop);
      EXPECT_EQ(at_once.finish(c), whole);
    }
  }
  AnswerText none(nullptr, {}, stop);
  none.add(5);
  EXPECT_EQ(none.shown(), "");
}

}  // namespace
}  // namespace fathom
