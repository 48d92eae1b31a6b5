// What a request may ask for beside tokens: log-probs of the prompt, lists, limits on the end, and
// being told of tokens as they come.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/rollout/engine.h"
#include "fathom/rollout/history_hash_model.h"

namespace fathom {
namespace {

constexpr int64_t kVocab = 32;
constexpr int32_t kEos = 1;

class EngineRequestTest : public ::testing::Test {
 protected:
  Engine make(EngineOptions options = {}) {
    auto model = std::make_unique<HistoryHashModel>(kVocab);
    model_ = model.get();
    return Engine(ctx_, hash_model_config(kVocab), std::move(model), options);
  }
  ThreadPool pool_{1};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
  HistoryHashModel* model_ = nullptr;
};

Request request(std::vector<int32_t> prompt, std::vector<uint64_t> seeds, int64_t max_new_tokens) {
  Request r;
  r.prompt_ids = std::move(prompt);
  r.seeds = std::move(seeds);
  r.sampling.max_new_tokens = max_new_tokens;
  return r;
}

/// The model's logits behind `tokens`.
std::vector<float> logits_behind(const std::vector<int32_t>& tokens) {
  uint64_t hash = 0;
  for (const int32_t id : tokens) hash = HistoryHashModel::next_hash(hash, id);
  std::vector<float> z;
  for (int64_t v = 0; v < kVocab; ++v) z.push_back(HistoryHashModel::logit(hash, v));
  return z;
}

TEST_F(EngineRequestTest, PromptLogProbsAreThoseOfThePromptsOwnTokens) {
  const std::vector<int32_t> prompt = {3, 14, 15, 9, 2, 6, 5};
  for (const int64_t chunk : {1000, 1, 3}) {
    for (const int64_t from : {0, 2, 5, 6}) {
      for (const int64_t max_new_tokens : {0, 4}) {
        EngineOptions options;
        options.chunked_prefill_size = chunk;
        Engine engine = make(options);
        // The same prompt first: nothing that is kept of it may stand in for what is asked for.
        engine.submit(request(prompt, {1}, 3));
        engine.run_until_done();
        Request r = request(prompt, {1, 2}, max_new_tokens);
        r.prompt_log_probs_from = from;
        r.lists = {.num_top = 3, .token_ids = {8}};
        engine.submit(r);
        const std::vector<Completion> done = engine.run_until_done();
        ASSERT_EQ(done.size(), 2u);
        for (const Completion& c : done) {
          if (max_new_tokens == 0) {
            EXPECT_TRUE(c.token_ids.empty());
            EXPECT_EQ(c.finish_reason, FinishReason::kLength);
          }
          ASSERT_EQ(c.prompt_log_probs.size(), prompt.size() - 1 - static_cast<size_t>(from));
          ASSERT_EQ(c.prompt_lists.top.size(), c.prompt_log_probs.size());
          ASSERT_EQ(c.prompt_lists.listed.size(), c.prompt_log_probs.size());
          for (size_t i = 0; i < c.prompt_log_probs.size(); ++i) {
            const size_t at = static_cast<size_t>(from) + 1 + i;  // of the scored token
            const std::vector<float> z =
                logits_behind({prompt.begin(), prompt.begin() + static_cast<int64_t>(at)});
            const DrawnToken expected = score_token(ctx_, z.data(), kVocab, prompt[at], r.lists);
            EXPECT_EQ(c.prompt_log_probs[i], expected.log_prob);
            EXPECT_EQ(c.prompt_lists.top[i], expected.top);
            EXPECT_EQ(c.prompt_lists.listed[i], expected.listed);
          }
        }
      }
    }
  }
}

TEST_F(EngineRequestTest, ScoringKeepsRoutesOfThePromptAndRunsAtFullLength) {
  Engine engine = make();
  Request r = request({3, 14, 15}, {1}, 0);
  r.record_replay = true;
  engine.submit(r);
  std::vector<int32_t> full(64, 7);
  Request longest = request(full, {1}, 5);
  longest.prompt_log_probs_from = 0;
  engine.submit(longest);
  const std::vector<Completion> done = engine.run_until_done();
  ASSERT_EQ(done.size(), 2u);
  EXPECT_EQ(done[0].replay.routes, (std::vector<int32_t>{3, 4, 14, 15, 15, 16}));
  EXPECT_EQ(done[1].prompt_log_probs.size(), 63u);
  EXPECT_TRUE(done[1].token_ids.empty());
  EXPECT_FALSE(engine.has_work());
}

TEST_F(EngineRequestTest, ListsAndPenaltiesFollowTheAnswer) {
  Engine engine = make();
  Request r = request({3, 14, 15}, {7}, 20);
  r.sampling.frequency_penalty = 0.7f;
  r.sampling.ignore_eos = true;
  r.lists = {.num_top = 2, .token_ids = {0, 31}};
  engine.submit(r);
  const Completion c = engine.run_until_done().at(0);
  ASSERT_EQ(c.lists.top.size(), 20u);
  ASSERT_EQ(c.lists.listed.size(), 20u);
  std::vector<int32_t> tokens = r.prompt_ids;
  for (size_t i = 0; i < 20; ++i) {
    const std::vector<float> z = logits_behind(tokens);
    Draw draw{z.data(), &r.sampling, 7, static_cast<int64_t>(tokens.size()),
              std::span(c.token_ids).first(i)};
    draw.lists = &r.lists;
    DrawnToken expected{};
    Sampler().sample(ctx_, kVocab, {&draw, 1}, {&expected, 1});
    EXPECT_EQ(c.token_ids[i], expected.token_id);
    EXPECT_EQ(c.log_probs[i], expected.log_prob);
    EXPECT_EQ(c.lists.top[i], expected.top);
    EXPECT_EQ(c.lists.listed[i], expected.listed);
    tokens.push_back(expected.token_id);
  }
}

TEST_F(EngineRequestTest, NoEndBeforeMinNewTokens) {
  int64_t num_early_without = 0;
  for (const int64_t at_least : {0, 12}) {
    Engine engine = make();
    for (uint64_t seed = 0; seed < 60; ++seed) {
      Request r = request({3, 14}, {seed}, 40);
      r.sampling.stop_token_ids = {4, 5};
      r.sampling.min_new_tokens = at_least;
      engine.submit(r);
    }
    for (const Completion& c : engine.run_until_done()) {
      if (at_least == 0) {
        num_early_without += c.token_ids.size() < 12;
        continue;
      }
      ASSERT_GE(c.token_ids.size(), 12u);
      for (size_t i = 0; i + 1 < c.token_ids.size(); ++i) {
        EXPECT_TRUE(c.token_ids[i] != kEos && c.token_ids[i] != 4 && c.token_ids[i] != 5);
      }
    }
  }
  EXPECT_GT(num_early_without, 10) << "else this shows nothing";
}

TEST_F(EngineRequestTest, EveryTokenIsToldAsItComesAndTheStopStringIsNamed) {
  EngineOptions options;
  options.append_token = [](int32_t id, std::string* text) {
    text->push_back(static_cast<char>('a' + id % 8));
  };
  std::map<std::pair<int64_t, int64_t>, std::vector<int32_t>> told;
  options.on_token = [&](const Completion& so_far) {
    std::vector<int32_t>& ids = told[{so_far.request_id, so_far.sample}];
    EXPECT_EQ(so_far.token_ids.size(), ids.size() + 1);
    EXPECT_EQ(so_far.log_probs.size(), ids.size() + 1);
    ids = so_far.token_ids;
  };
  Engine engine = make(options);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Request r = request({3, 14}, {seed, seed + 100}, 30);
    r.sampling.stop = {"ab", "cd", "e"};
    engine.submit(r);
  }
  std::map<std::string, int64_t> stops;
  for (const Completion& c : engine.run_until_done()) {
    const std::vector<int32_t>& ids = told[{c.request_id, c.sample}];
    ASSERT_EQ(c.token_ids.size(), ids.size() + 1) << "the last token comes with the completion";
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), c.token_ids.begin()));
    ++stops[c.matched_stop];
    EXPECT_EQ(c.matched_stop.empty(),
              c.finish_reason != FinishReason::kStop || c.token_ids.back() == kEos);
  }
  EXPECT_GT(stops["e"], 0);
  EXPECT_EQ(stops[""] + stops["ab"] + stops["cd"] + stops["e"], 40);
}

}  // namespace
}  // namespace fathom
