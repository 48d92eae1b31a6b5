// The engine's memory: cached prefixes, budgets, priorities, pauses, and what is refused.
#include <gtest/gtest.h>

#include <string>

#include "fathom/base/error.h"
#include "fathom/rollout/history_hash_model.h"
#include "fathom/rollout/random_schedule.h"

namespace fathom {
namespace {

constexpr int64_t kVocab = 24;
constexpr int64_t kPage = 16;

class EngineMemoryTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> make(EngineOptions options = {}) {
    options.page_size = kPage;
    auto model = std::make_unique<HistoryHashModel>(config_, &salt_);
    model_ = model.get();
    return std::make_unique<Engine>(ctx_, config_, std::move(model), options);
  }
  StateLayout layout(bool with_mtp = false) const { return {config_, kPage, with_mtp}; }

  static Request request(uint64_t prompt_seed, int64_t length, int64_t max_new_tokens,
                         int64_t num_samples = 1) {
    Request r;
    TestRandom random(prompt_seed);
    for (int64_t i = 0; i < length; ++i) {
      r.prompt_ids.push_back(static_cast<int32_t>(random.below(kVocab)));
    }
    for (int64_t s = 0; s < num_samples; ++s) {
      r.seeds.push_back(sample_seed(prompt_seed, static_cast<uint64_t>(s)));
    }
    r.sampling.max_new_tokens = max_new_tokens;
    r.sampling.ignore_eos = true;
    return r;
  }

  ModelConfig config_ = full_hash_model_config(kVocab);
  uint64_t salt_ = 3;
  ThreadPool pool_{1};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
  HistoryHashModel* model_ = nullptr;
};

TEST_F(EngineMemoryTest, APromptSentAgainHitsAllItsWholePages) {
  const auto engine = make();
  const Request r = request(1, 100, 4);
  engine->submit(r);
  const Completion first = engine->run_until_done().at(0);
  EXPECT_EQ(first.num_cached_tokens, 0);
  const int64_t cold = model_->num_tokens;
  engine->submit(r);
  const Completion second = engine->run_until_done().at(0);
  EXPECT_EQ(second.num_cached_tokens, 96);
  EXPECT_EQ(model_->num_tokens - cold, 4 + 3);
  EXPECT_EQ(difference(first, second), "");
  // A prompt of whole pages still computes its last page: logits are needed.
  Request whole = r;
  whole.prompt_ids.resize(96);
  engine->submit(whole);
  EXPECT_EQ(engine->run_until_done().at(0).num_cached_tokens, 80);
  EXPECT_EQ(engine->counters().prefix_cache.num_hits, 2);
  EXPECT_EQ(engine->counters().prefix_cache.num_hit_tokens, 96 + 80);
}

TEST_F(EngineMemoryTest, AnAnswerIsAPrefixToo) {
  for (const bool cache_answers : {true, false}) {
    const auto engine = make({.cache_answers = cache_answers});
    Request r = request(2, 20, 50);
    engine->submit(r);
    const Completion answer = engine->run_until_done().at(0);
    r.prompt_ids.insert(r.prompt_ids.end(), answer.token_ids.begin(), answer.token_ids.end());
    engine->submit(r);
    // 70 tokens, of which the last was never fed.
    EXPECT_EQ(engine->run_until_done().at(0).num_cached_tokens, cache_answers ? 64 : 16);
  }
}

TEST_F(EngineMemoryTest, RequestsThatArriveTogetherComputeTheirCommonBeginningOnce) {
  // Eight requests of one prompt, as clients send them who do not know of n, and one of eight.
  const Request eight = request(3, 128, 2, 8);
  const auto grouped = make();
  grouped->submit(eight);
  const std::vector<Completion> want = grouped->run_until_done();
  EXPECT_EQ(model_->num_tokens, 128 + 8);

  const auto engine = make({.chunked_prefill_size = 48});
  for (const uint64_t seed : eight.seeds) {
    Request one = eight;
    one.seeds = {seed};
    engine->submit(one);
  }
  const std::vector<Completion> got = engine->run_until_done();
  ASSERT_EQ(got.size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    Completion c = got[i];
    EXPECT_EQ(c.token_ids, want[i].token_ids);
    EXPECT_EQ(c.log_probs, want[i].log_probs);
    EXPECT_EQ(c.num_cached_tokens, i == 0 ? 0 : 112);
  }
  EXPECT_LT(model_->num_tokens, 130 * (128 + 8) / 100 + 7 * 16);
}

TEST_F(EngineMemoryTest, NewWeightsAndFlushesForgetEverything) {
  const auto engine = make();
  const Request r = request(4, 64, 3);
  const auto run = [&] {
    engine->submit(r);
    return engine->run_until_done().at(0);
  };
  const Completion old_answer = run();
  EXPECT_EQ(run().num_cached_tokens, 48);
  engine->set_weight_version(0);
  EXPECT_EQ(run().num_cached_tokens, 48) << "the same version";
  salt_ = 4;
  engine->set_weight_version(1);
  EXPECT_EQ(engine->counters().num_cached_pages, 0);
  const Completion new_answer = run();
  EXPECT_EQ(new_answer.num_cached_tokens, 0);
  EXPECT_EQ(new_answer.weight_version, 1);
  EXPECT_NE(new_answer.token_ids, old_answer.token_ids);
  engine->flush_cache();
  EXPECT_EQ(run().num_cached_tokens, 0);
}

TEST_F(EngineMemoryTest, RoutesOfCachedTokensAreReturned) {
  const auto engine = make();
  Request r = request(5, 60, 6);
  engine->submit(r);  // without routes
  engine->run_until_done();
  r.record_replay = true;
  engine->submit(r);
  const Completion cold = engine->run_until_done().at(0);
  EXPECT_EQ(cold.num_cached_tokens, 0) << "cached pages without routes do not count";
  engine->submit(r);
  const Completion warm = engine->run_until_done().at(0);
  EXPECT_EQ(warm.num_cached_tokens, 48);
  EXPECT_EQ(difference(cold, warm), "");
  ASSERT_EQ(warm.replay.routes.size(), 65u * 4 * 2);
  EXPECT_EQ(warm.replay.route_row(20, 2)[0], r.prompt_ids[20]);
}

TEST_F(EngineMemoryTest, PromptLogProbsAreComputedWhateverIsCached) {
  const auto engine = make();
  Request r = request(6, 60, 2);
  engine->submit(r);
  engine->run_until_done();
  r.prompt_log_probs_from = 20;
  engine->submit(r);
  const Completion c = engine->run_until_done().at(0);
  EXPECT_EQ(c.num_cached_tokens, 16);
  EXPECT_EQ(c.prompt_log_probs.size(), 39u);
}

TEST_F(EngineMemoryTest, TheLeastRecentlyUsedPrefixGoesFirst) {
  const StateLayout l = layout();
  // Room for one running request of 48 tokens and about three cached ones.
  EngineOptions options;
  options.state_bytes = 4 * (l.history_bytes(48) + 3 * l.fixed_bytes()) + 2 * l.fixed_bytes();
  const auto engine = make(options);
  const auto run = [&](uint64_t prompt) {
    engine->submit(request(prompt, 48, 1));
    return engine->run_until_done().at(0).num_cached_tokens;
  };
  run(1);
  run(2);
  run(3);
  EXPECT_EQ(run(1), 32);
  for (uint64_t prompt = 10; prompt < 12; ++prompt) run(prompt);
  EXPECT_EQ(run(1), 32) << "used a moment ago";
  EXPECT_EQ(run(2), 0) << "evicted";
  EXPECT_GT(engine->counters().prefix_cache.num_evictions, 0);
  EXPECT_LE(engine->state_pools().kept_bytes(), options.state_bytes);
}

TEST_F(EngineMemoryTest, MemoryThatRunsOutPreemptsTheLastAndEveryoneFinishes) {
  const StateLayout l = layout();
  EngineOptions options;
  // Three look as if they fit, and grow.
  options.state_bytes = 3 * (l.fixed_bytes() + l.history_bytes(150) - l.page_bytes());
  options.prefix_cache = false;
  const auto alone = make();
  std::vector<Completion> want;
  const auto engine = make(options);
  for (uint64_t i = 0; i < 8; ++i) {
    engine->submit(request(i, 10, 140));
    alone->submit(request(i, 10, 140));
  }
  want = alone->run_until_done();
  std::vector<Completion> in_order_of_finish;
  while (engine->step()) {
    for (Completion& c : engine->take_completions()) in_order_of_finish.push_back(c);
  }
  ASSERT_EQ(in_order_of_finish.size(), 8u);
  EXPECT_EQ(in_order_of_finish.front().request_id, 0) << "the first is never preempted";
  EXPECT_EQ(in_order_of_finish.front().num_preemptions, 0);
  EXPECT_GT(engine->counters().num_preemptions, 0);
  EXPECT_GT(engine->counters().num_recomputed_tokens, 0);
  for (const Completion& c : in_order_of_finish) {
    EXPECT_EQ(difference(c, want[static_cast<size_t>(c.request_id)]), "");
  }
  EXPECT_EQ(engine->state_pools().used_bytes(), 0);
}

TEST_F(EngineMemoryTest, WorstCaseAdmissionNeverPreempts) {
  const StateLayout l = layout();
  EngineOptions options;
  options.state_bytes = 3 * (l.fixed_bytes() + l.history_bytes(100)) - l.page_bytes();
  options.admission = Admission::kWorstCase;
  const auto engine = make(options);
  for (uint64_t i = 0; i < 8; ++i)
    engine->submit(request(i, 40, 60, 1 + static_cast<int64_t>(i % 3)));
  EXPECT_EQ(engine->run_until_done().size(), 15u);
  EXPECT_EQ(engine->counters().num_preemptions, 0);
}

TEST_F(EngineMemoryTest, ARequestThatCannotFitIsRefusedAndSoIsOneTooMany) {
  const StateLayout l = layout();
  EngineOptions options;
  options.state_bytes = l.fixed_bytes() + l.history_bytes(100);
  options.max_queued_requests = 2;
  const auto engine = make(options);
  try {
    engine->submit(request(1, 60, 64));
    FAIL() << "no error";
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("fix: ask for fewer tokens"), std::string::npos);
  }
  engine->submit(request(1, 60, 40, 3));  // its samples run one after another
  engine->submit(request(2, 60, 40));
  EXPECT_THROW(engine->submit(request(3, 60, 40)), QueueFullError);
  EXPECT_EQ(engine->run_until_done().size(), 4u);
  engine->submit(request(3, 60, 40));
}

TEST_F(EngineMemoryTest, HigherPrioritiesGoFirstButOvertakeOnlySoFar) {
  const auto engine = make({.max_running_requests = 1});
  Request r = request(1, 4, 2);
  const int64_t low = engine->submit(r);
  r.priority = 2;
  const int64_t high = engine->submit(r);
  std::vector<int64_t> order;
  while (engine->step()) {
    for (const Completion& c : engine->take_completions()) order.push_back(c.request_id);
  }
  EXPECT_EQ(order, (std::vector<int64_t>{high, low}));

  // Urgent requests without end: the patient one is served all the same.
  r.priority = 0;
  const int64_t patient = engine->submit(r);
  r.priority = 1;
  bool served = false;
  int64_t num_steps = 0;
  for (; num_steps < 4 * Scheduler::kStepsPerPriority && !served; ++num_steps) {
    while (engine->scheduler().num_waiting() < 3) engine->submit(r);
    engine->step();
    for (const Completion& c : engine->take_completions()) served |= c.request_id == patient;
  }
  EXPECT_TRUE(served);
  EXPECT_GT(num_steps, Scheduler::kStepsPerPriority / 2) << "urgent ones did go first";
}

TEST_F(EngineMemoryTest, PausesKeepOrDropStatesAndAnswersGoOn) {
  const auto alone = make();
  alone->submit(request(1, 40, 30, 2));
  const std::vector<Completion> want = alone->run_until_done();
  for (const PauseMode mode : {PauseMode::kInPlace, PauseMode::kRetract}) {
    const auto engine = make({.prefix_cache = false});
    engine->submit(request(1, 40, 30, 2));
    for (int i = 0; i < 10; ++i) engine->step();
    const int64_t used = engine->state_pools().used_bytes();
    engine->pause(mode);
    EXPECT_TRUE(engine->is_paused());
    EXPECT_FALSE(engine->step());
    EXPECT_TRUE(engine->has_work());
    EXPECT_EQ(engine->state_pools().used_bytes(), mode == PauseMode::kRetract ? 0 : used);
    if (mode == PauseMode::kInPlace) {
      EXPECT_THROW(engine->set_weight_version(1), InternalError);
    }
    engine->resume();
    const std::vector<Completion> got = engine->run_until_done();
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(difference(got[i], want[i]), "");
  }
  const auto engine = make();
  engine->submit(request(1, 40, 30, 2));
  engine->step();
  engine->pause(PauseMode::kAbort);
  EXPECT_EQ(engine->take_completions().size(), 2u);
}

TEST_F(EngineMemoryTest, AnAnswerOverTwoVersionsSaysSo) {
  const auto engine = make();
  engine->set_weight_version(7);
  engine->submit(request(1, 10, 20));
  for (int i = 0; i < 5; ++i) engine->step();
  engine->pause(PauseMode::kRetract);
  salt_ = 99;
  engine->set_weight_version(8);
  engine->resume();
  const Completion c = engine->run_until_done().at(0);
  EXPECT_EQ(c.weight_version, 8);
  EXPECT_EQ(c.weight_versions, (std::vector<std::pair<int64_t, int64_t>>{{7, 5}, {8, 15}}));
}

TEST_F(EngineMemoryTest, ReleasedMemoryIsGoneAndComesBack) {
  const auto engine = make();
  const Request r = request(1, 100, 50, 4);
  engine->submit(r);
  const std::vector<Completion> want = engine->run_until_done();
  EXPECT_GT(engine->state_pools().used_bytes(), 0) << "cached";
  const int64_t kept = engine->state_pools().kept_bytes();
  const ReleasedMemory released = engine->release_memory();
  EXPECT_EQ(released.state_bytes, kept);
  EXPECT_EQ(engine->state_pools().kept_bytes(), 0);
  EXPECT_EQ(engine->release_memory().state_bytes, 0) << "twice is once";
  EXPECT_THROW(engine->step(), InternalError);
  engine->take_memory();
  engine->submit(r);
  EXPECT_THROW(engine->release_memory(), InternalError) << "a request is under way";
  const std::vector<Completion> got = engine->run_until_done();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(difference(got[i], want[i]), "");
}

TEST(DefaultPageSizeTest, IsAMultipleOfAllRatios) {
  ModelConfig config;
  const auto page_of = [&](std::vector<int64_t> ratios) {
    config.compress_ratios = std::move(ratios);
    return default_page_size(config);
  };
  EXPECT_EQ(page_of({0, 0, 4, 128, 4, 128}), 256);  // the release
  EXPECT_EQ(page_of({0, 4, 16, 0}), 16);            // the tiny model
  EXPECT_EQ(page_of({0, 4, 96}), 288);
  EXPECT_EQ(page_of({4, 512}), 512);
  EXPECT_EQ(page_of({0, 0}), 16);
}

TEST_F(EngineMemoryTest, DraftsNeedAModelThatMakesThem) {
  config_.num_nextn_predict_layers = 0;
  EXPECT_THROW(make({.num_draft_tokens = 2}), UserError);
  EXPECT_THROW(make({.num_draft_tokens = -1}), UserError);
}

TEST_F(EngineMemoryTest, DraftsSaveStepsAndAreCounted) {
  const auto plain = make();
  plain->submit(request(1, 30, 60, 2));
  const std::vector<Completion> want = plain->run_until_done();
  const int64_t plain_steps = plain->counters().num_steps;
  const auto engine = make({.num_draft_tokens = 3});
  engine->submit(request(1, 30, 60, 2));
  const std::vector<Completion> got = engine->run_until_done();
  int64_t drafted = 0, accepted = 0;
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(difference(got[i], want[i]), "");
    drafted += got[i].num_drafted;
    accepted += got[i].num_accepted;
  }
  const EngineCounters counters = engine->counters();
  EXPECT_EQ(counters.num_drafted, drafted);
  EXPECT_EQ(counters.num_accepted, accepted);
  EXPECT_GT(counters.acceptance_rate(), 0.2);
  EXPECT_LT(counters.num_steps, plain_steps * 3 / 4);
}

}  // namespace
}  // namespace fathom
