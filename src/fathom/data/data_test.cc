#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/data/gsm8k.h"
#include "fathom/data/parquet_rows.h"
#include "fathom/data/prompt.h"
#include "fathom/data/prompt_cursor.h"
#include "fathom/data/rows.h"
#include "fathom/data/sample.h"

namespace fathom {
namespace {

std::string write_temp(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "fathom_data_" + name;
  std::ofstream(path) << text;
  return path;
}

std::string render(const Json& messages, const Json&) {
  return "<" + messages.back()["content"].get<std::string>() + ">";
}
std::vector<int32_t> tokenize(const std::string& text) {
  return std::vector<int32_t>(text.begin(), text.end());
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const UserError& e) {
    return e.what();
  }
  return "no error";
}

TEST(PromptTest, StringsAndMessagesAreRenderedLabelsKeptAndBlankLinesSkipped) {
  const std::string path =
      write_temp("ok.jsonl",
                 "{\"q\": \"1+1=\", \"label\": 2}\n\n"
                 "{\"q\": [{\"role\":\"user\",\"content\":\"hi\"}], \"label\": \"x\"}\n");
  PromptFileOptions o;
  o.input_key = "q";
  o.label_key = "label";
  o.apply_chat_template = true;
  const PromptFile file = read_prompts(path, o, render, tokenize);
  ASSERT_EQ(file.prompts.size(), 2u);
  EXPECT_EQ(file.prompts[0].text, "<1+1=>");
  EXPECT_EQ(file.prompts[0].label, "2");
  EXPECT_EQ(file.prompts[1].text, "<hi>");
  EXPECT_EQ(read_prompts(path + "@[1:]", o, render, tokenize).prompts[0].label, "x");
}

TEST(PromptTest, ABadLineIsAnErrorWithItsNumberAndCanBeSkipped) {
  const std::string path =
      write_temp("bad.jsonl", "{\"input\": \"a\"}\n{oops\n{\"input\": \"b\"}\n");
  PromptFileOptions o;
  EXPECT_NE(message_of([&] { read_prompts(path, o, render, tokenize); }).find("line 2"),
            std::string::npos);
  o.skip_bad_lines = true;
  const PromptFile file = read_prompts(path, o, render, tokenize);
  EXPECT_EQ(file.prompts.size(), 2u);
  EXPECT_EQ(file.num_bad_lines, 1);
}

TEST(PromptTest, AMissingLabelNamesTheKey) {
  const std::string path = write_temp("nolabel.jsonl", "{\"input\": \"a\"}\n");
  PromptFileOptions o;
  o.label_key = "answer";
  const std::string message = message_of([&] { read_prompts(path, o, render, tokenize); });
  EXPECT_NE(message.find("answer"), std::string::npos);
  EXPECT_NE(message.find("line 1"), std::string::npos);
}

TEST(PromptTest, OverlongPromptsAreLeftOutAndCounted) {
  const std::string path =
      write_temp("long.jsonl", "{\"input\": \"abcdef\"}\n{\"input\": \"ab\"}\n");
  PromptFileOptions o;
  o.max_prompt_tokens = 3;
  const PromptFile file = read_prompts(path, o, render, tokenize);
  EXPECT_EQ(file.num_too_long, 1);
  ASSERT_EQ(file.prompts.size(), 1u);
}

TEST(PromptCursorTest, EveryEpochVisitsEveryPromptOnceInAnotherOrder) {
  PromptCursor cursor(50, true, 42);
  const auto first = cursor.take(50), second = cursor.take(50);
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 50u);
  EXPECT_EQ(std::set<int64_t>(second.begin(), second.end()).size(), 50u);
  EXPECT_NE(first, second);
}

TEST(PromptCursorTest, ARestoredCursorGoesOnWhereTheSavedOneWas) {
  PromptCursor cursor(7, true, 1);
  cursor.take(10);
  PromptCursor resumed(7, true, 1);
  resumed.restore(cursor.to_json(), "test");
  EXPECT_EQ(cursor.take(9), resumed.take(9));
  PromptCursor other(8, true, 1);
  EXPECT_THROW(other.restore(cursor.to_json(), "test"), UserError);
}

TEST(SampleTest, ASampleGoesThroughJsonWithItsBits) {
  Sample s;
  s.index = 5;
  s.tokens = {1, 2, 3};
  s.response_length = 2;
  s.rollout_log_probs = {std::bit_cast<float>(0xBF800001u), -0.0f};
  s.metadata = Json{{"a", 1}};
  s.status = SampleStatus::kTruncated;
  const Sample back = sample_from_json(parse_json(sample_to_json(s).dump(), "x"), "x");
  EXPECT_EQ(std::bit_cast<uint32_t>(back.rollout_log_probs[0]), 0xBF800001u);
  EXPECT_EQ(std::bit_cast<uint32_t>(back.rollout_log_probs[1]), 0x80000000u);
  EXPECT_EQ(back.tokens, s.tokens);
  EXPECT_EQ(back.status, SampleStatus::kTruncated);
  EXPECT_THROW(sample_from_json(Json{{"index", 1}}, "x"), UserError);
}

const std::string kParquet = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/parquet/";

std::vector<Json> rows_of(const std::string& path, const RowRange& range = {}) {
  std::vector<Json> rows;
  for_each_row(path, range, [&](const Row& row) { rows.push_back(row.parse()); });
  return rows;
}

class ParquetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_parquet()) GTEST_SKIP() << "this build was made without Arrow";
  }
};

TEST_F(ParquetTest, RowsAreTheSameAsThoseOfJsonLines) {
  const std::vector<Json> expected = rows_of(kParquet + "rows.jsonl");
  ASSERT_EQ(expected.size(), 7u);
  EXPECT_EQ(rows_of(kParquet + "rows.parquet"), expected);
  for (int64_t begin = 0; begin < 7; ++begin) {
    for (int64_t end = begin; end < 9; ++end) {
      EXPECT_EQ(rows_of(kParquet + "rows.parquet", {begin, end}),
                rows_of(kParquet + "rows.jsonl", {begin, end}));
    }
  }
}

TEST_F(ParquetTest, TypesWithoutACounterpart) {
  const Json row = rows_of(kParquet + "odd.parquet").at(0);
  EXPECT_EQ(row["day"], "2026-01-02");
  EXPECT_EQ(row["time"], "2026-01-02 03:04:05.000");
  EXPECT_EQ(row["price"], "1.50");
  EXPECT_EQ(row["bytes"], "text");
  EXPECT_TRUE(row["picture"].is_null());
  EXPECT_FALSE(row.contains("span"));
}

TEST_F(ParquetTest, PromptsOfNestedMessages) {
  PromptFileOptions o;
  o.input_key = "messages";
  o.label_key = "label";
  o.apply_chat_template = true;
  const PromptFile file = read_prompts(kParquet + "rows.parquet@[1:5]", o, render, tokenize);
  ASSERT_EQ(file.prompts.size(), 4u);
  EXPECT_EQ(file.prompts[0].text, "<1+1= \xC3\xA9>");
  EXPECT_EQ(file.prompts[3].label, "5");
}

TEST_F(ParquetTest, ErrorsNameFileRowAndColumn) {
  const auto read = [](const std::string& path, bool skip = false) {
    PromptFileOptions o;
    o.skip_bad_lines = skip;
    return read_prompts(path, o, render, tokenize);
  };
  const std::string message = message_of([&] { read(kParquet + "not_utf8.parquet"); });
  EXPECT_NE(message.find("not_utf8.parquet row 1: column input: its text is not UTF-8"),
            std::string::npos)
      << message;
  EXPECT_EQ(read(kParquet + "not_utf8.parquet", true).num_bad_lines, 1);
  EXPECT_NE(
      message_of([&] { read(kParquet + "rows.parquet"); }).find("rows.parquet row 0: the prompt"),
      std::string::npos);
  std::ifstream whole(kParquet + "rows.parquet", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(whole), {}};
  for (const size_t size : {size_t{0}, size_t{4}, bytes.size() / 2, bytes.size() - 1}) {
    const std::string cut = write_temp("cut.parquet", bytes.substr(0, size));
    EXPECT_NE(message_of([&] { read(cut); }).find("is no sound parquet file"), std::string::npos);
  }
  for (size_t at = 4; at < bytes.size(); at += 37) {  // damaged anywhere: an error or other rows
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    const std::string path = write_temp("damaged.parquet", damaged);
    try {
      rows_of(path);
    } catch (const UserError&) {
    }
  }
  EXPECT_NE(message_of([&] { read("/nowhere.parquet"); }).find("cannot be opened"),
            std::string::npos);
}

TEST_F(ParquetTest, Gsm8kNeedsNoMapping) {
  PromptFileOptions o;
  o.input_key = "messages";
  o.label_key = "label";
  o.apply_chat_template = true;
  const std::string path = kParquet + "gsm8k.parquet";
  const PromptFile file = read_prompts(path, o, render, tokenize);
  EXPECT_EQ(file.prompts[0].text, "<How many is 70 + 2?>");
  EXPECT_EQ(file.prompts[1].label, "1072");
  o.input_key = "question";
  o.label_key = "answer";
  EXPECT_EQ(read_prompts(path, o, render, tokenize).prompts[0].label, "72");
  o.label_is_graded = false;  // sft learns the whole answer
  EXPECT_EQ(read_prompts(path, o, render, tokenize).prompts[0].label, "70 and 2 more.\n#### 72");
}

TEST(Gsm8kTest, FinalAnswers) {
  EXPECT_EQ(gsm8k_final_answer("a\n#### -1,234 \n"), "-1234");
  EXPECT_EQ(gsm8k_final_answer("#### 1\n#### 2"), "2");
  EXPECT_EQ(gsm8k_final_answer("no mark"), "");
}

}  // namespace
}  // namespace fathom
