#include "fathom/rollout/generate.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/rollout/history_hash_model.h"

namespace fathom {
namespace {

constexpr int64_t kVocab = 66;  // two ids more than the tokenizer has tokens

class GenerateTest : public ::testing::Test {
 protected:
  using Prompts = std::vector<std::vector<int32_t>>;

  Prompts read(const std::string& input, bool with_tokenizer = true) {
    return read_generate_lines(input, "in.jsonl", hash_model_config(kVocab),
                               with_tokenizer ? &tokenizer_ : nullptr);
  }

  std::vector<Json> run(const Prompts& prompts, const GenerateOptions& options,
                        bool with_tokenizer = true) {
    EngineOptions engine_options = options.engine;
    if (with_tokenizer) engine_options.append_token = append_token_of(tokenizer_);
    Engine engine(ctx_, hash_model_config(kVocab), std::make_unique<HistoryHashModel>(kVocab),
                  engine_options);
    std::vector<Json> lines;
    generate(engine, prompts, options, with_tokenizer, [&](std::string_view line) {
      EXPECT_EQ(line.find('\n'), line.size() - 1);
      lines.push_back(parse_json(line.substr(0, line.size() - 1), "output"));
    });
    return lines;
  }

  void expect_error(const std::string& input, const std::string& part, bool with_tokenizer = true) {
    try {
      read(input, with_tokenizer);
      ADD_FAILURE() << "no error; expected one with: " << part;
    } catch (const UserError& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << "got: " << e.what();
    }
  }

  ThreadPool pool_{1};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
  Tokenizer tokenizer_ = Tokenizer::load(FATHOM_SOURCE_DIR "/configs/tiny/tokenizer");
};

TEST_F(GenerateTest, ReadsIdsTextAndMessages) {
  EXPECT_EQ(read("{\"token_ids\": [0, 65]}\n"
                 "{\"prompt\": \"1+2=<\uFF5C"
                 "end\u2581of\u2581sentence\uFF5C>\"}\r\n"
                 "{\"messages\": [{\"role\": \"user\", \"content\": \"1+2=\"}]}\n"
                 "{\"messages\": [{\"role\": \"user\", \"content\": \"1+2=\"}], "
                 "\"thinking_mode\": \"chat\"}\n \n"),
            (Prompts{{0, 65},
                     {4, 13, 5, 17, 1},
                     {0, 58, 4, 13, 5, 17, 59, 60},
                     {0, 58, 4, 13, 5, 17, 59, 61}}));
}

TEST_F(GenerateTest, BadLinesAreNamed) {
  const std::string good = "{\"token_ids\": [2]}\n";
  expect_error("", "in.jsonl: holds no lines");
  expect_error("\n \n", "in.jsonl: holds no lines");
  expect_error(good + "{", "in.jsonl line 2");
  expect_error(good + "[1]", "in.jsonl line 2: a JSON object");
  expect_error(good + "\n" + good, "in.jsonl line 2: is empty");
  expect_error(good + "{}", "line 2: exactly one of");
  expect_error("{\"prompt\": \"1\", \"token_ids\": [1]}", "line 1: exactly one of");
  expect_error("{\"prompt\": 1}", "line 1: prompt: a string");
  expect_error("{\"prompt\": \"\"}", "line 1: the prompt is empty");
  expect_error("{\"prompt\": \"1\", \"temperature\": 0}", "unknown key \"temperature\"");
  expect_error("{\"messages\": []}", "line 1: messages: a list");
  expect_error("{\"messages\": [{\"role\": \"nobody\"}]}", "line 1: messages[0].role");
  expect_error(good + "{\"token_ids\": []}", "line 2: token_ids: a list of at least one");
  expect_error(good + "{\"token_ids\": \"1\"}", "line 2: token_ids: a list");
  expect_error(good + "{\"token_ids\": [1.0]}", "an integer is expected, got 1.0");
  for (const char* id : {"66", "-1", "4294967298", "18446744073709551615"}) {
    expect_error(good + "{\"token_ids\": [1, " + id + "]}",
                 std::string("line 2: token_ids: id ") + id);
  }
  std::string longest = "{\"token_ids\": [2";
  for (int i = 1; i < 64; ++i) longest += ",2";
  EXPECT_EQ(read(longest + "]}").at(0).size(), 64u);
  expect_error(longest + ",2]}", "line 1: the prompt has 65 tokens");
}

TEST_F(GenerateTest, TextLinesNeedATokenizerAndIdsDoNot) {
  EXPECT_EQ(read("{\"token_ids\": [5]}", false), (Prompts{{5}}));
  expect_error("{\"token_ids\": [5]}\n{\"prompt\": \"1\"}", "line 2: text needs a tokenizer",
               false);
  const std::vector<Json> lines = run({{5}}, {}, false);
  EXPECT_FALSE(lines.at(0).contains("text"));
  GenerateOptions with_stop;
  with_stop.sampling.stop = {"1"};
  EXPECT_THROW(run({{5}}, with_stop, false), UserError);
}

TEST_F(GenerateTest, AnswersComeByLineThenSampleWhateverRunsFirst) {
  GenerateOptions options;
  options.num_samples = 3;
  options.seed = 5;
  options.sampling.max_new_tokens = 40;
  Prompts prompts;
  for (int32_t i = 0; i < 7; ++i) {
    prompts.push_back(std::vector<int32_t>(static_cast<size_t>(1 + i * 4 % 9), i));
  }
  const std::vector<Json> expected = run(prompts, options);
  ASSERT_EQ(expected.size(), 21u);
  std::map<std::string, int> reasons;
  for (size_t i = 0; i < 21; ++i) {
    const Json& line = expected[i];
    std::vector<std::string> keys;
    for (const auto& [key, value] : line.items()) keys.push_back(key);
    EXPECT_EQ(keys, (std::vector<std::string>{"index", "sample", "token_ids", "logprobs",
                                              "finish_reason", "text"}));
    EXPECT_EQ(line["index"], i / 3);
    EXPECT_EQ(line["sample"], i % 3);
    EXPECT_EQ(line["token_ids"].size(), line["logprobs"].size());
    ++reasons[line["finish_reason"].get<std::string>()];
  }
  EXPECT_GT(reasons["stop"], 0);
  EXPECT_GT(reasons["length"], 0);
  EXPECT_EQ(reasons.size(), 2u);
  options.engine.max_running_requests = 2;
  options.engine.chunked_prefill_size = 3;
  EXPECT_EQ(run(prompts, options), expected);
}

TEST_F(GenerateTest, NoiseIsAFunctionOfSeedLineAndSample) {
  GenerateOptions options;
  options.num_samples = 2;
  options.sampling.ignore_eos = true;
  options.sampling.max_new_tokens = 12;
  const Prompts twins = {{7, 8}, {7, 8}};
  const std::vector<Json> both = run(twins, options);
  std::map<std::string, int> different;
  for (const Json& line : both) ++different[line["token_ids"].dump()];
  EXPECT_EQ(different.size(), 4u) << "equal prompts, different noise";
  const std::vector<Json> first = run({twins[0]}, options);
  EXPECT_EQ(first[0], both[0]);
  EXPECT_EQ(first[1], both[1]);
  options.seed = 1;
  EXPECT_NE(run({twins[0]}, options)[0]["token_ids"], both[0]["token_ids"]);
}

TEST_F(GenerateTest, LogProbsParseBackToTheSameFloat) {
  Request request;
  request.prompt_ids = {3, 4};
  request.seeds = {mix64(mix64(0, 0), 0)};
  request.sampling.ignore_eos = true;
  request.sampling.max_new_tokens = 50;
  Engine engine(ctx_, hash_model_config(kVocab), std::make_unique<HistoryHashModel>(kVocab), {});
  engine.submit(request);
  const Completion completion = engine.run_until_done().at(0);
  GenerateOptions options;
  options.sampling = request.sampling;
  const Json line = run({{3, 4}}, options).at(0);
  EXPECT_EQ(line["token_ids"].get<std::vector<int32_t>>(), completion.token_ids);
  ASSERT_EQ(line["logprobs"].size(), completion.log_probs.size());
  for (size_t i = 0; i < completion.log_probs.size(); ++i) {
    EXPECT_EQ(line["logprobs"][i].get<double>(), static_cast<double>(completion.log_probs[i]));
  }
}

TEST_F(GenerateTest, TextKeepsSpecialTokensButTheEndingOne) {
  GenerateOptions options;
  options.sampling.max_new_tokens = 60;
  options.num_samples = 20;
  int64_t num_stopped = 0;
  for (const Json& line : run({{9}}, options)) {
    auto ids = line["token_ids"].get<std::vector<int32_t>>();
    if (line["finish_reason"] == "stop") {
      ASSERT_EQ(ids.back(), 1);
      ids.pop_back();
      ++num_stopped;
    }
    std::string expected;
    for (const int32_t id : ids) {
      expected += id < 64 ? tokenizer_.decode({&id, 1}) : std::string("\xEF\xBF\xBD");
    }
    EXPECT_EQ(line["text"], expected);
  }
  EXPECT_GT(num_stopped, 3);
}

TEST_F(GenerateTest, TextIsCutBeforeAStopString) {
  GenerateOptions options;
  options.sampling.max_new_tokens = 60;
  options.sampling.ignore_eos = true;
  const std::string all = run({{9}}, options).at(0)["text"].get<std::string>();
  options.sampling.stop = {all.substr(20, 6)};
  const Json stopped = run({{9}}, options).at(0);
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["text"], all.substr(0, all.find(options.sampling.stop[0])));
  EXPECT_LT(stopped["token_ids"].size(), 60u);
}

}  // namespace
}  // namespace fathom
