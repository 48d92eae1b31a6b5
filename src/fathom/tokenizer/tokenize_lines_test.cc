#include "fathom/tokenizer/tokenize_lines.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

class TokenizeLinesTest : public ::testing::Test {
 protected:
  std::string run(const std::string& input) {
    return tokenize_lines(tokenizer_, input, "in.jsonl");
  }
  void expect_error(const std::string& input, const std::string& part) {
    try {
      run(input);
      ADD_FAILURE() << "no error; expected one with: " << part;
    } catch (const UserError& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << "got: " << e.what();
    }
  }
  Tokenizer tokenizer_ = Tokenizer::load(FATHOM_SOURCE_DIR "/configs/tiny/tokenizer");
};

TEST_F(TokenizeLinesTest, EachLineGetsItsAnswerInOrder) {
  EXPECT_EQ(run("{\"text\": \"1+2=\"}\n\n{\"token_ids\": [0, 57, 4, 1]}\r\n{\"text\": \"\"}"),
            "{\"token_ids\":[4,13,5,17]}\n"
            "{\"text\":\"<\uFF5C"
            "begin\u2581of\u2581sentence\uFF5C>\\\\boxed{1<\uFF5C"
            "end\u2581of\u2581sentence\uFF5C>\"}\n"
            "{\"token_ids\":[]}\n");
  EXPECT_EQ(run(""), "");
}

TEST_F(TokenizeLinesTest, MessagesShowTheirText) {
  const std::string head =
      "{\"text\":\"<\uFF5C"
      "begin\u2581of\u2581sentence\uFF5C><\uFF5CUser\uFF5C>1+2=<\uFF5C"
      "Assistant\uFF5C>";
  EXPECT_EQ(run(R"({"messages": [{"role": "user", "content": "1+2="}], "thinking_mode": "chat"})"),
            head + "</think>\",\"token_ids\":[0,58,4,13,5,17,59,61]}\n");
  EXPECT_EQ(run(R"({"messages": [{"role": "user", "content": "1+2="}]})"),
            head + "<think>\",\"token_ids\":[0,58,4,13,5,17,59,60]}\n");
}

TEST_F(TokenizeLinesTest, BadLinesAreNamed) {
  const std::string good = "{\"text\": \"1\"}\n";
  expect_error(good + "{", "in.jsonl line 2: not valid JSON");
  expect_error(good + "\n[1]", "in.jsonl line 3: a JSON object is expected");
  expect_error(good + "{}", "line 2: exactly one of");
  expect_error("{\"text\": \"1\", \"token_ids\": [1]}", "line 1: exactly one of");
  expect_error("{\"text\": 1}", "line 1: text: a string");
  expect_error("{\"text\": \"1\", \"thinking_mode\": \"chat\"}", "unknown key \"thinking_mode\"");
  expect_error("{\"token_ids\": []}", "line 1: token_ids: a list of at least one id");
  expect_error("{\"token_ids\": \"1\"}", "line 1: token_ids");
  expect_error("{\"token_ids\": [1.5]}", "an integer is expected, got 1.5");
  for (const char* id :
       {"64", "-1", "4294967296", "18446744073709551615", "99999999999999999999"}) {
    expect_error(good + "{\"token_ids\": [1, " + id + "]}", "line 2: token_ids");
  }
  expect_error("{\"messages\": []}", "line 1: messages: a list of at least one");
  expect_error("{\"messages\": [{\"role\": \"robot\"}]}", "line 1: messages[0].role");
  expect_error("{\"messages\": [{\"role\": \"user\", \"content\": \"1\"}], \"seed\": 1}",
               "\"seed\"");
  expect_error(good + "{\"text\": \"Z\"}",
               "in.jsonl line 2: tokenizer: no token for the character \"Z\"");
}

TEST(TokenizeFilesTest, OutputAppearsWholeOrNotAtAll) {
  const std::string directory = FATHOM_SOURCE_DIR "/configs/tiny/tokenizer";
  const std::string input = ::testing::TempDir() + "fathom_tokenize_in.jsonl";
  const std::string output = ::testing::TempDir() + "fathom_tokenize_out.jsonl";
  std::filesystem::remove(output);
  write_file_atomic(input, "{\"text\": \"1\"}\n{\"text\": \"Z\"}\n");
  EXPECT_THROW(tokenize_files(directory, input, output), UserError);
  EXPECT_FALSE(file_exists(output));
  write_file_atomic(input, "{\"text\": \"1\"}\n{\"token_ids\": [5]}\n");
  tokenize_files(directory, input, output);
  EXPECT_EQ(read_file(output), "{\"token_ids\":[4]}\n{\"text\":\"2\"}\n");
  EXPECT_THROW(tokenize_files(directory, input + ".none", output), UserError);
  std::filesystem::remove(input);
  std::filesystem::remove(output);
}

}  // namespace
}  // namespace fathom
