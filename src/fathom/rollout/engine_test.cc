#include "fathom/rollout/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "fathom/base/error.h"
#include "fathom/rollout/history_hash_model.h"

namespace fathom {
namespace {

constexpr int64_t kVocab = 32;
constexpr int32_t kEos = 1;

class EngineTest : public ::testing::Test {
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

/// Prompts of many lengths, kinds of sampling and numbers of samples.
std::vector<Request> mixed_requests() {
  std::vector<Request> all;
  for (int32_t i = 0; i < 12; ++i) {
    std::vector<int32_t> prompt;
    for (int32_t t = 0; t <= i * 5 % 17; ++t)
      prompt.push_back(static_cast<int32_t>((i * 7 + t * 3) % kVocab));
    std::vector<uint64_t> seeds;
    for (int32_t s = 0; s < 1 + i % 4; ++s) {
      seeds.push_back(sample_seed(9, static_cast<uint64_t>(10 * i + s)));
    }
    Request r = request(prompt, seeds, 3 + i);
    r.sampling.temperature = i % 3 == 0 ? 0.0f : i % 3 == 1 ? 1.0f : 0.7f;
    r.sampling.top_k = i % 2 == 0 ? 0 : 9;
    r.record_replay = i % 2 == 1;
    all.push_back(r);
  }
  return all;
}

void expect_same_answer(const Completion& a, const Completion& b, const std::string& what) {
  EXPECT_EQ(a.token_ids, b.token_ids) << what;
  EXPECT_EQ(a.log_probs, b.log_probs) << what;
  EXPECT_EQ(a.finish_reason, b.finish_reason) << what;
  EXPECT_EQ(a.replay.routes, b.replay.routes) << what;
}

TEST_F(EngineTest, AnswersFollowFromTheSequenceAndTheSeedAlone) {
  // Computed one token at a time, from the definition.
  Engine engine = make();
  const std::vector<int32_t> prompt = {3, 14, 15};
  Request r = request(prompt, {7, 8}, 20);
  r.sampling.ignore_eos = true;
  engine.submit(r);
  const std::vector<Completion> done = engine.run_until_done();
  ASSERT_EQ(done.size(), 2u);
  Sampler sampler;
  for (size_t s = 0; s < 2; ++s) {
    EXPECT_EQ(done[s].sample, static_cast<int64_t>(s));
    ASSERT_EQ(done[s].token_ids.size(), 20u);
    std::vector<int32_t> tokens = prompt;
    for (size_t i = 0; i < 20; ++i) {
      uint64_t hash = 0;
      for (const int32_t id : tokens) hash = HistoryHashModel::next_hash(hash, id);
      std::vector<float> z;
      for (int64_t v = 0; v < kVocab; ++v) z.push_back(HistoryHashModel::logit(hash, v));
      const Draw draw{z.data(), &r.sampling, r.seeds[s], static_cast<int64_t>(tokens.size())};
      DrawnToken expected{};
      sampler.sample(ctx_, kVocab, {&draw, 1}, {&expected, 1});
      EXPECT_EQ(done[s].token_ids[i], expected.token_id);
      EXPECT_EQ(done[s].log_probs[i], expected.log_prob);
      tokens.push_back(expected.token_id);
    }
  }
  EXPECT_NE(done[0].token_ids, done[1].token_ids);
}

TEST_F(EngineTest, LimitsDoNotChangeAnswers) {
  std::vector<Completion> expected;
  for (const int64_t max_running : {64, 1, 2, 5}) {
    for (const int64_t chunk : {1000, 1, 3, 8}) {
      EngineOptions options;
      options.max_running_requests = max_running;
      options.chunked_prefill_size = chunk;
      Engine engine = make(options);
      for (const Request& r : mixed_requests()) engine.submit(r);
      const std::vector<Completion> done = engine.run_until_done();
      if (expected.empty()) expected = done;
      ASSERT_EQ(done.size(), expected.size());
      for (size_t i = 0; i < done.size(); ++i) {
        expect_same_answer(done[i], expected[i],
                           str_cat("max_running ", max_running, " chunk ", chunk, " answer ", i));
      }
    }
  }
}

TEST_F(EngineTest, OrderAndGroupingDoNotChangeAnswers) {
  Engine grouped = make();
  const std::vector<Request> requests = mixed_requests();
  for (const Request& r : requests) grouped.submit(r);
  const std::vector<Completion> expected = grouped.run_until_done();

  Engine apart = make();
  std::vector<int64_t> answer_of_id;
  int64_t answer = static_cast<int64_t>(expected.size());
  for (auto r = requests.rbegin(); r != requests.rend(); ++r) {
    for (auto seed = r->seeds.rbegin(); seed != r->seeds.rend(); ++seed) {
      Request one = *r;
      one.seeds = {*seed};
      apart.submit(one);
      answer_of_id.push_back(--answer);
      apart.step();  // later requests join while earlier ones run
    }
  }
  const std::vector<Completion> done = apart.run_until_done();
  ASSERT_EQ(done.size(), expected.size());
  for (const Completion& c : done) {
    expect_same_answer(
        c, expected[static_cast<size_t>(answer_of_id[static_cast<size_t>(c.request_id)])],
        str_cat("request ", c.request_id));
  }
}

TEST_F(EngineTest, SamplesShareOnePrefillAndEveryTokenIsComputedOnce) {
  Engine engine = make();
  Request r = request(std::vector<int32_t>(20, 5), {1, 2, 3, 4}, 6);
  r.sampling.ignore_eos = true;
  engine.submit(r);
  engine.run_until_done();
  EXPECT_EQ(model_->num_tokens, 20 + 4 * 5) << "the last token of an answer is never fed";
  EXPECT_EQ(model_->num_steps, 6);
}

TEST_F(EngineTest, ReplayCoversEveryFedPosition) {
  Engine engine = make();
  Request r = request({4, 5, 6}, {1, 2}, 5);
  r.sampling.ignore_eos = true;
  r.record_replay = true;
  engine.submit(r);
  for (const Completion& c : engine.run_until_done()) {
    std::vector<int32_t> fed = {4, 5, 6};
    fed.insert(fed.end(), c.token_ids.begin(), c.token_ids.end() - 1);
    EXPECT_EQ(c.replay.num_layers, 1);
    EXPECT_EQ(c.replay.num_slots, 2);
    ASSERT_EQ(c.replay.routes.size(), fed.size() * 2);
    for (size_t t = 0; t < fed.size(); ++t) {
      EXPECT_EQ(c.replay.route_row(static_cast<int64_t>(t), 0)[0], fed[t]);
    }
  }
}

TEST_F(EngineTest, FinishReasons) {
  Engine engine = make();
  // Without stops, to know what comes.
  Request free = request({9, 9}, {1}, 40);
  free.sampling.ignore_eos = true;
  engine.submit(free);
  const Completion all = engine.run_until_done().at(0);
  EXPECT_EQ(all.finish_reason, FinishReason::kLength);
  EXPECT_EQ(all.token_ids.size(), 40u);

  const int32_t stop_id = all.token_ids[10];
  const auto first = std::find(all.token_ids.begin(), all.token_ids.end(), stop_id);
  const std::vector<int32_t> up_to_stop(all.token_ids.begin(), first + 1);
  Request stopping = free;
  stopping.sampling.stop_token_ids = {stop_id};
  engine.submit(stopping);
  const Completion stopped = engine.run_until_done().at(0);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.token_ids, up_to_stop) << "the stop token is kept";
  EXPECT_EQ(stopped.log_probs.size(), up_to_stop.size());

  // A stop token that is also the last token allowed still ended the answer.
  stopping.sampling.max_new_tokens = static_cast<int64_t>(up_to_stop.size());
  engine.submit(stopping);
  EXPECT_EQ(engine.run_until_done().at(0).finish_reason, FinishReason::kStop);

  // The model's maximum length.
  Request longest = free;
  longest.sampling.max_new_tokens = 1000;
  engine.submit(longest);
  const Completion full = engine.run_until_done().at(0);
  EXPECT_EQ(full.finish_reason, FinishReason::kLength);
  EXPECT_EQ(full.token_ids.size(), 62u);

  // Nothing to draw.
  engine.submit(request(std::vector<int32_t>(64, 2), {1, 2}, 8));
  engine.submit(request({2}, {1}, 0));
  const std::vector<Completion> none = engine.run_until_done();
  ASSERT_EQ(none.size(), 3u);
  for (const Completion& c : none) {
    EXPECT_EQ(c.finish_reason, FinishReason::kLength);
    EXPECT_TRUE(c.token_ids.empty());
  }
}

TEST_F(EngineTest, TheModelsEndTokenEndsAnAnswerUnlessIgnored) {
  Engine engine = make();
  for (uint64_t seed = 0; seed < 40; ++seed) engine.submit(request({2, 3}, {seed}, 60));
  int64_t num_stopped = 0;
  for (const Completion& c : engine.run_until_done()) {
    const auto end = std::find(c.token_ids.begin(), c.token_ids.end(), kEos);
    if (c.finish_reason == FinishReason::kStop) {
      ++num_stopped;
      EXPECT_EQ(end, c.token_ids.end() - 1);
    } else {
      EXPECT_EQ(end, c.token_ids.end());
    }
  }
  EXPECT_GT(num_stopped, 10);
}

TEST_F(EngineTest, StopStringsAreFoundAcrossTokensAndCutFromTheText) {
  EngineOptions options;
  std::vector<std::string> names;
  for (int32_t i = 0; i < kVocab; ++i)
    names.push_back(std::string(1, static_cast<char>('a' + i % 26)) + "-");
  options.append_token = [&](int32_t id, std::string* text) {
    *text += names[static_cast<size_t>(id)];
  };
  Engine engine = make(options);
  Request r = request({9, 9}, {5}, 30);
  r.sampling.ignore_eos = true;
  engine.submit(r);
  const Completion all = engine.run_until_done().at(0);
  ASSERT_EQ(all.text.size(), 60u);

  // From the middle of token 6 to the middle of token 8: token 8 completes it.
  r.sampling.stop = {"never", all.text.substr(13, 4)};
  const size_t cut = all.text.find(r.sampling.stop[1]);
  ASSERT_EQ(cut, 13u);
  engine.submit(r);
  const Completion stopped = engine.run_until_done().at(0);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.text, all.text.substr(0, 13));
  EXPECT_EQ(stopped.token_ids,
            std::vector<int32_t>(all.token_ids.begin(), all.token_ids.begin() + 9));

  // The ending token is no part of the text.
  r.sampling.stop = {};
  r.sampling.stop_token_ids = {all.token_ids[4]};
  engine.submit(r);
  const Completion ended = engine.run_until_done().at(0);
  EXPECT_EQ(ended.text, all.text.substr(0, 2 * (ended.token_ids.size() - 1)));
}

TEST_F(EngineTest, AbortKeepsWhatWasDrawnAndLeavesOthersAlone) {
  Engine alone = make();
  alone.submit(request({1, 2, 3}, {4}, 30));
  const Completion expected = alone.run_until_done().at(0);

  EngineOptions options;
  options.max_running_requests = 2;
  Engine engine = make(options);
  Request long_one = request({7, 8}, {1, 2, 3}, 50);
  long_one.sampling.ignore_eos = true;
  const int64_t doomed = engine.submit(long_one);
  const int64_t kept = engine.submit(request({1, 2, 3}, {4}, 30));
  const int64_t waiting = engine.submit(long_one);
  for (int i = 0; i < 5; ++i) engine.step();
  engine.abort(doomed);
  engine.abort(waiting);
  engine.abort(12345);
  const std::vector<Completion> done = engine.run_until_done();
  ASSERT_EQ(done.size(), 7u);
  for (const Completion& c : done) {
    if (c.request_id == kept) {
      expect_same_answer(c, expected, "kept");
    } else {
      EXPECT_EQ(c.finish_reason, FinishReason::kAbort);
      EXPECT_EQ(c.token_ids.size(), c.log_probs.size());
      if (c.request_id == doomed) {
        EXPECT_GT(c.token_ids.size(), 0u);
      }
      if (c.request_id == waiting) {
        EXPECT_EQ(c.token_ids.size(), 0u);
      }
    }
  }
  engine.submit(long_one);
  engine.step();
  engine.abort_all();
  EXPECT_FALSE(engine.has_work());
  EXPECT_EQ(engine.take_completions().size(), 3u);
  EXPECT_FALSE(engine.step());
}

TEST_F(EngineTest, AnswersCarryTheWeightVersionAndNoStateOutlivesIt) {
  Engine engine = make();
  engine.set_weight_version(3);
  engine.submit(request({1}, {1}, 4));
  EXPECT_THROW(engine.set_weight_version(4), InternalError) << "requests are under way";
  EXPECT_EQ(engine.run_until_done().at(0).weight_version, 3);
  engine.set_weight_version(4);
  engine.submit(request({1}, {1}, 4));
  EXPECT_EQ(engine.run_until_done().at(0).weight_version, 4);
}

TEST_F(EngineTest, BadRequestsAreErrors) {
  Engine engine = make();
  EXPECT_THROW(engine.submit(request({}, {1}, 4)), UserError);
  EXPECT_THROW(engine.submit(request({32}, {1}, 4)), UserError);
  EXPECT_THROW(engine.submit(request({-1}, {1}, 4)), UserError);
  EXPECT_THROW(engine.submit(request(std::vector<int32_t>(65, 1), {1}, 4)), UserError);
  EXPECT_THROW(engine.submit(request({1}, {}, 4)), UserError);
  EXPECT_THROW(engine.submit(request({1}, {1}, -4)), UserError);
  Request with_stop = request({1}, {1}, 4);
  with_stop.sampling.stop = {"x"};
  EXPECT_THROW(engine.submit(with_stop), UserError);
  EXPECT_FALSE(engine.has_work());
}

TEST(GeneratedTextTest, OnlyTheFirstMatchCountsAndOverlapsAreFound) {
  const auto append = [](GeneratedText* text, const char* bytes,
                         const std::vector<std::string>& stop) {
    *text->grow() += bytes;
    return text->cut_at_stop(stop);
  };
  GeneratedText text;
  EXPECT_FALSE(append(&text, "xa", {"ab", "b"}));
  EXPECT_TRUE(append(&text, "b", {"ab", "b"})) << "completes both; \"ab\" begins first";
  EXPECT_EQ(text.bytes(), "x");
  GeneratedText repeated;
  EXPECT_FALSE(append(&repeated, "aa", {"aab"}));
  EXPECT_FALSE(append(&repeated, "a", {"aab"}));
  EXPECT_TRUE(append(&repeated, "bc", {"aab"}));
  EXPECT_EQ(repeated.bytes(), "a");
}

}  // namespace
}  // namespace fathom
