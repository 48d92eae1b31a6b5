// The engine under random schedules, on a model that hashes everything it can see: every answer
// must be that of the request alone. FATHOM_TEST_SCHEDULES=n runs n schedules instead of a few.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "fathom/rollout/history_hash_model.h"
#include "fathom/rollout/random_schedule.h"

namespace fathom {
namespace {

constexpr int64_t kVocab = 24;

int64_t num_schedules(int64_t usual) {
  const char* given = std::getenv("FATHOM_TEST_SCHEDULES");
  return given == nullptr ? usual : std::atoll(given);
}

class ScheduleTest : public ::testing::Test {
 protected:
  ScheduleSubject subject() {
    ScheduleSubject s;
    s.config = full_hash_model_config(kVocab);
    s.page_multiple = 8;
    s.can_draft = true;
    s.append_token = [](int32_t id, std::string* text) {
      *text += static_cast<char>('a' + id % 3);
      *text += static_cast<char>('a' + id / 8);
    };
    s.make_engine = [this, config = s.config](const EngineOptions& options) {
      return std::make_unique<Engine>(ctx_, config,
                                      std::make_unique<HistoryHashModel>(config, &salt_), options);
    };
    s.set_weights = [this](int64_t version) { salt_ = mix64(5, static_cast<uint64_t>(version)); };
    return s;
  }

  uint64_t salt_ = 0;
  ThreadPool pool_{1};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
};

/// Tokens and log-probs of an answer that spans weight versions, from the definition.
void expect_versions_followed(const ExecContext& ctx, const ScheduleSubject& subject,
                              const Request& request, const Completion& c, const uint64_t* salt) {
  const HistoryHashModel model(subject.config, const_cast<uint64_t*>(salt));
  std::vector<int32_t> tokens = request.prompt_ids;
  Sampler sampler;
  size_t i = 0;
  std::vector<int32_t> ending = request.sampling.stop_token_ids;
  if (!request.sampling.ignore_eos) ending.push_back(1);
  for (const auto& [version, count] : c.weight_versions) {
    subject.set_weights(version);
    for (int64_t n = 0; n < count; ++n, ++i) {
      const std::vector<float> logits = model.logits_of(tokens);
      Draw draw{logits.data(), &request.sampling, request.seeds[static_cast<size_t>(c.sample)],
                static_cast<int64_t>(tokens.size()), std::span(c.token_ids).first(i)};
      if (static_cast<int64_t>(i) < request.sampling.min_new_tokens) draw.forbidden = ending;
      DrawnToken drawn{};
      sampler.sample(ctx, kVocab, {&draw, 1}, {&drawn, 1});
      ASSERT_EQ(c.token_ids[i], drawn.token_id) << "token " << i << " of version " << version;
      ASSERT_EQ(c.log_probs[i], drawn.log_prob) << "token " << i << " of version " << version;
      tokens.push_back(drawn.token_id);
    }
  }
  EXPECT_EQ(i, c.token_ids.size());
}

TEST_F(ScheduleTest, EveryAnswerIsThatOfTheRequestAlone) {
  const ScheduleSubject s = subject();
  const int64_t n = num_schedules(1000);
  EngineCounters total;
  int64_t num_requests = 0, num_answers = 0, num_spanning = 0, num_aborted = 0;
  for (int64_t seed = 0; seed < n; ++seed) {
    SCOPED_TRACE(str_cat("schedule ", seed));
    const ScheduleResult result = run_schedule(s, static_cast<uint64_t>(seed), 14);
    ASSERT_EQ(check_against_alone(s, result), "");
    for (const Completion& c : result.done) {
      num_aborted += c.finish_reason == FinishReason::kAbort;
      if (c.weight_versions.empty()) continue;
      ++num_spanning;
      expect_versions_followed(ctx_, s, result.requests[static_cast<size_t>(c.request_id)], c,
                               &salt_);
    }
    ASSERT_FALSE(HasFailure());
    num_requests += static_cast<int64_t>(result.requests.size());
    num_answers += static_cast<int64_t>(result.done.size());
    total.num_preemptions += result.counters.num_preemptions;
    total.num_drafted += result.counters.num_drafted;
    total.num_accepted += result.counters.num_accepted;
    total.num_recomputed_tokens += result.counters.num_recomputed_tokens;
    total.prefix_cache.num_hits += result.counters.prefix_cache.num_hits;
    total.prefix_cache.num_evictions += result.counters.prefix_cache.num_evictions;
  }
  std::printf(
      "%ld schedules, %ld requests, %ld answers (%ld over several weight versions, %ld "
      "aborted), %ld preemptions, %ld prefix hits, %ld evictions, %ld of %ld drafts right\n",
      n, num_requests, num_answers, num_spanning, num_aborted, total.num_preemptions,
      total.prefix_cache.num_hits, total.prefix_cache.num_evictions, total.num_accepted,
      total.num_drafted);
  // The schedules are worth their name.
  EXPECT_GT(total.num_preemptions, n / 2);
  EXPECT_GT(total.prefix_cache.num_hits, n);
  EXPECT_GT(total.prefix_cache.num_evictions, n);
  EXPECT_GT(total.num_accepted, total.num_drafted / 4);
  EXPECT_LT(total.num_accepted, total.num_drafted);
  EXPECT_GT(num_spanning, n / 5);
}

}  // namespace
}  // namespace fathom
