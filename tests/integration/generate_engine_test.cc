// The rollout engine on a real model: the goldens' greedy tokens, the same bits for every way to
// schedule, and log-probs that are the trainer's forward bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/safetensors.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/model/forward.h"
#include "fathom/rollout/engine.h"
#include "fathom/rollout/generate.h"

namespace fathom {
namespace {

const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

std::vector<int32_t> ids_of(const Tensor& t) { return {t.i32(), t.i32() + t.numel()}; }

/// Prompts shorter and longer than the window, answers that cross page and compression borders.
std::vector<Request> mixed_requests(const ModelConfig& config) {
  std::vector<Request> all;
  const std::vector<float> random = random_floats(1000, 0, 1, 12);
  size_t at = 0;
  for (const int64_t length : {1, 3, 17, 40, 6, 29}) {
    Request r;
    for (int64_t t = 0; t < length; ++t) {
      r.prompt_ids.push_back(
          static_cast<int32_t>(random[at++] * static_cast<float>(config.vocab_size)));
    }
    const size_t i = all.size();
    for (uint64_t s = 0; s < 1 + i % 3; ++s) r.seeds.push_back(sample_seed(4, 10 * i + s));
    r.sampling.max_new_tokens = 9 + 5 * static_cast<int64_t>(i % 3);
    r.sampling.temperature = i == 2 ? 0.0f : i % 2 == 0 ? 1.0f : 0.8f;
    r.sampling.top_p = i == 5 ? 0.9f : 1.0f;
    r.sampling.ignore_eos = true;
    r.record_replay = true;
    all.push_back(r);
  }
  return all;
}

void expect_same_answers(const std::vector<Completion>& got, const std::vector<Completion>& want,
                         const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token_ids, want[i].token_ids) << what << ", answer " << i;
    expect_same_bits(got[i].log_probs, want[i].log_probs, what + ", log-probs");
    EXPECT_EQ(got[i].replay.routes, want[i].replay.routes) << what << ", answer " << i;
    EXPECT_EQ(got[i].replay.picks, want[i].replay.picks) << what << ", answer " << i;
  }
}

/// A golden model in a mode.
struct Served {
  std::string model;
  Precision precision;
  friend auto operator<=>(const Served&, const Served&) = default;
};

class GenerateEngineTest : public ::testing::TestWithParam<Served> {
 protected:
  static const Weights& weights() {
    static std::map<Served, Weights> loaded;
    if (!loaded.contains(GetParam())) {
      Weights w = load_weights(context(), kGolden + GetParam().model + "/model");
      set_precision(context(), &w, GetParam().precision);
      loaded.emplace(GetParam(), std::move(w));
    }
    return loaded.at(GetParam());
  }
  std::vector<Completion> run(const ExecContext& ctx, const std::vector<Request>& requests,
                              int64_t max_running, int64_t chunk) {
    EngineOptions options;
    options.max_running_requests = max_running;
    options.chunked_prefill_size = chunk;
    Engine engine(ctx, weights(), options);
    for (const Request& r : requests) engine.submit(r);
    return engine.run_until_done();
  }
  static const ExecContext& context() {
    static ThreadPool pool(2);
    static const ExecContext ctx{&pool, detect_cpu_isa()};
    return ctx;
  }
  const ExecContext& ctx_ = context();
};

TEST_P(GenerateEngineTest, GreedyTokensAreTheGoldens) {
  if (GetParam().precision != Precision::kFp32) GTEST_SKIP() << "the goldens are in fp32";
  const SafetensorsFile golden(kGolden + GetParam().model + "/case.safetensors");
  Request r;
  r.prompt_ids = ids_of(golden.read("greedy.prompt"));
  const std::vector<int32_t> expected = ids_of(golden.read("greedy.tokens"));
  r.seeds = {0};
  r.sampling.temperature = 0;
  r.sampling.ignore_eos = true;
  r.sampling.max_new_tokens = static_cast<int64_t>(expected.size());
  for (const int64_t chunk : {1000, 5}) {
    EXPECT_EQ(run(ctx_, {r}, 4, chunk).at(0).token_ids, expected) << "chunks of " << chunk;
  }
}

TEST_P(GenerateEngineTest, SchedulingThreadsAndInstructionSetDoNotChangeABit) {
  const std::vector<Request> requests = mixed_requests(weights().config);
  const std::vector<Completion> expected = run(ctx_, requests, 64, 1000);
  expect_same_answers(run(ctx_, requests, 1, 1000), expected, "one at a time");
  expect_same_answers(run(ctx_, requests, 3, 7), expected, "three at a time, chunks of 7");
  expect_same_answers(run(ctx_, requests, 64, 1), expected, "chunks of 1");
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    expect_same_answers(run(ctx, requests, 5, 16), expected, name);
  });
}

TEST_P(GenerateEngineTest, SamplesOfOnePromptAreTheSamplesOfSeparateRequests) {
  const std::vector<Request> requests = mixed_requests(weights().config);
  const std::vector<Completion> expected = run(ctx_, requests, 64, 1000);
  std::vector<Request> separate;
  for (auto r = requests.rbegin(); r != requests.rend(); ++r) {
    for (auto seed = r->seeds.rbegin(); seed != r->seeds.rend(); ++seed) {
      separate.push_back(*r);
      separate.back().seeds = {*seed};
    }
  }
  std::vector<Completion> got = run(ctx_, separate, 4, 11);
  std::reverse(got.begin(), got.end());
  expect_same_answers(got, expected, "separate and in reverse");
}

TEST_P(GenerateEngineTest, LogProbsRoutesAndPicksAreTheTrainersForward) {
  const std::vector<Request> requests = mixed_requests(weights().config);
  for (const Completion& c : run(ctx_, requests, 6, 8)) {
    const Request& r = requests[static_cast<size_t>(c.request_id)];
    std::vector<int32_t> tokens = r.prompt_ids;
    tokens.insert(tokens.end(), c.token_ids.begin(), c.token_ids.end());
    ReplayRecord routes = c.replay;
    std::fill(routes.routes.begin(), routes.routes.end(), -1);
    std::fill(routes.picks.begin(), routes.picks.end(), -1);
    // As the trainer packs it: the whole sequence but its last token, no state, beside another one.
    Batch batch;
    batch.token_ids = tokens;
    batch.token_ids.back() = 3;
    Segment segment;
    segment.num_tokens = static_cast<int64_t>(tokens.size()) - 1;
    segment.replay_out = &routes;
    batch.segments.push_back(segment);
    Segment other;
    other.num_tokens = 1;
    batch.segments.push_back(other);
    const Tensor streams = forward_layers(ctx_, weights(), batch, embed(ctx_, weights(), batch));
    std::vector<int64_t> rows;
    for (size_t t = r.prompt_ids.size(); t < tokens.size(); ++t) {
      rows.push_back(static_cast<int64_t>(t) - 1);
    }
    const Tensor hidden = collapse(ctx_, weights(), streams, rows);
    const float temperature = r.sampling.temperature == 0 ? 1.0f : r.sampling.temperature;
    const Tensor expected = log_probs(ctx_, weights(), hidden, c.token_ids, temperature);
    expect_same_bits(c.log_probs, {expected.f32(), expected.f32() + expected.numel()},
                     str_cat("request ", c.request_id, " sample ", c.sample));
    EXPECT_EQ(c.replay.routes, routes.routes);
    EXPECT_EQ(c.replay.picks, routes.picks);
    EXPECT_EQ(std::count(routes.routes.begin(), routes.routes.end(), -1), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GenerateEngineTest,
                         ::testing::Values(Served{"small", Precision::kFp32},
                                           Served{"small", Precision::kParityBf16},
                                           Served{"small", Precision::kParityFp8},
                                           Served{"release_shapes", Precision::kFp32},
                                           Served{"release_shapes", Precision::kParityBf16},
                                           Served{"release_shapes", Precision::kParityFp8}),
                         [](const auto& test) {
                           std::string name =
                               test.param.model + "_" + precision_name(test.param.precision);
                           std::erase(name, '-');
                           return name;
                         });

class GenerateFileTest : public ::testing::Test {
 protected:
  void write_input(const std::string& text) { write_file_atomic(input_, text); }
  std::vector<Json> output_lines() const {
    std::vector<Json> lines;
    const std::string text = read_file(output_);
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      lines.push_back(parse_json(text.substr(at, end - at), output_));
      at = end + 1;
    }
    return lines;
  }
  void generate_with(const std::string& model, const std::string& input, const std::string& output,
                     const GenerateOptions& options) {
    generate_file(ctx_, model, input, output, options,
                  [&](const std::string& directory) { return load_weights(ctx_, directory); });
  }
  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
  std::string model_ = kGolden + "small/model";
  std::string input_ = ::testing::TempDir() + "fathom_generate_in.jsonl";
  std::string output_ = ::testing::TempDir() + "fathom_generate_out.jsonl";
};

TEST_F(GenerateFileTest, ADirectoryWithoutTokenizerAnswersTokenIds) {
  const SafetensorsFile golden(kGolden + "small/case.safetensors");
  const std::vector<int32_t> expected = ids_of(golden.read("greedy.tokens"));
  Json line = Json::object();
  line["token_ids"] = ids_of(golden.read("greedy.prompt"));
  write_input("{\"token_ids\": [1, 2, 3]}\n" + line.dump() + "\n");
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.sampling.ignore_eos = true;
  options.sampling.max_new_tokens = static_cast<int64_t>(expected.size());
  options.num_samples = 2;
  generate_with(model_, input_, output_, options);
  const std::vector<Json> lines = output_lines();
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[2]["index"], 1);
  EXPECT_EQ(lines[3]["sample"], 1);
  EXPECT_EQ(lines[3]["token_ids"].get<std::vector<int32_t>>(), expected);
  EXPECT_EQ(lines[3]["finish_reason"], "length");
  EXPECT_FALSE(lines[3].contains("text"));
}

TEST_F(GenerateFileTest, ABadLineStopsEverythingBeforeAnyWork) {
  write_file_atomic(output_, "as before");
  write_input("{\"token_ids\": [1]}\n{\"token_ids\": [100000]}\n");
  try {
    generate_with(model_, input_, output_, {});
    FAIL() << "no error";
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find(input_ + " line 2"), std::string::npos) << e.what();
  }
  EXPECT_EQ(read_file(output_), "as before");
  write_input("{\"token_ids\": [1]}\n");
  EXPECT_THROW(generate_with(model_, input_, "/nonexistent/out.jsonl", {}), UserError);
  EXPECT_THROW(generate_with(model_, input_, ::testing::TempDir(), {}), UserError);
  EXPECT_THROW(generate_with(model_, input_ + ".missing", output_, {}), UserError);
  EXPECT_THROW(generate_with(model_ + "/missing", input_, output_, {}), UserError);
  EXPECT_EQ(read_file(output_), "as before");
}

}  // namespace
}  // namespace fathom
