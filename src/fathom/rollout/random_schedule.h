// Random work for an engine, for tests of the promise that no answer depends on it: requests that
// begin alike, arrivals, limits small enough to preempt and evict, aborts, pauses, new weights.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fathom/base/hash.h"
#include "fathom/rollout/engine.h"

namespace fathom {

class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : seed_(seed) {}
  /// From 0 to n - 1.
  int64_t below(int64_t n) {
    return static_cast<int64_t>(mix64(seed_, counter_++) % static_cast<uint64_t>(n));
  }
  int64_t from_to(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }

 private:
  uint64_t seed_, counter_ = 0;
};

/// What the engine under test is made of.
struct ScheduleSubject {
  ModelConfig config;
  int64_t page_multiple = 1;  // page sizes are multiples of it
  int64_t max_prompt = 90, max_new = 40;
  bool can_draft = false;
  AppendToken append_token;  // null: no stop strings
  std::function<std::unique_ptr<Engine>(const EngineOptions&)> make_engine;
  /// Puts the weights of a version in place. Null: they never change.
  std::function<void(int64_t version)> set_weights;
};

inline SamplingParams random_sampling(TestRandom& r, const ScheduleSubject& subject) {
  const int64_t V = subject.config.vocab_size;
  SamplingParams p;
  const float temperatures[] = {0.0f, 1.0f, 0.7f, 1.6f};
  p.temperature = temperatures[r.below(4)];
  if (r.one_in(3)) p.top_p = 0.5f + 0.1f * static_cast<float>(r.below(5));
  if (r.one_in(4)) p.top_k = r.from_to(1, V);
  if (r.one_in(6)) p.min_p = 0.2f;
  if (r.one_in(5)) p.frequency_penalty = 0.5f;
  if (r.one_in(6)) p.presence_penalty = -0.4f;
  if (r.one_in(6)) p.repetition_penalty = 1.3f;
  if (r.one_in(8)) p.logit_bias = {{static_cast<int32_t>(r.below(V)), 2.0f}};
  p.max_new_tokens = r.one_in(12) ? r.below(3) : r.from_to(1, subject.max_new);
  p.ignore_eos = r.one_in(2);
  if (r.one_in(4)) p.min_new_tokens = std::min(p.max_new_tokens, r.below(10));
  if (r.one_in(4)) p.stop_token_ids = {static_cast<int32_t>(r.below(V))};
  if (subject.append_token && r.one_in(3)) {
    // Three bytes from the middle of two tokens.
    std::string text;
    for (int i = 0; i < 2; ++i) subject.append_token(static_cast<int32_t>(r.below(V)), &text);
    p.stop = {text.substr(text.size() / 4, 3)};
  }
  return p;
}

/// Prompts grow out of a few stems, so that whole pages are shared, and parts of pages.
inline std::vector<Request> random_requests(TestRandom& r, const ScheduleSubject& subject,
                                            int64_t count) {
  std::vector<std::vector<int32_t>> stems(3);
  for (auto& stem : stems) {
    for (int64_t i = 0; i < subject.max_prompt; ++i) {
      stem.push_back(static_cast<int32_t>(r.below(subject.config.vocab_size)));
    }
  }
  std::vector<Request> all;
  for (int64_t i = 0; i < count; ++i) {
    Request q;
    const auto& stem = stems[static_cast<size_t>(r.below(3))];
    const int64_t length = r.from_to(1, subject.max_prompt), shared = r.from_to(0, length);
    q.prompt_ids.assign(stem.begin(), stem.begin() + shared);
    while (static_cast<int64_t>(q.prompt_ids.size()) < length) {
      q.prompt_ids.push_back(static_cast<int32_t>(r.below(subject.config.vocab_size)));
    }
    q.sampling = random_sampling(r, subject);
    for (int64_t s = r.one_in(3) ? r.from_to(2, 4) : 1; s > 0; --s) {
      q.seeds.push_back(sample_seed(77, static_cast<uint64_t>(r.below(1000))));
    }
    q.record_replay = r.one_in(3);
    if (r.one_in(5)) q.prompt_log_probs_from = r.below(length);
    if (r.one_in(5)) q.lists = {.num_top = 2, .token_ids = {3}};
    q.priority = r.one_in(4) ? r.from_to(-1, 1) : 0;
    all.push_back(std::move(q));
  }
  return all;
}

/// @param needed bytes that the largest request can need.
inline EngineOptions random_options(TestRandom& r, const ScheduleSubject& subject,
                                    const std::vector<Request>& requests) {
  EngineOptions o;
  o.page_size = subject.page_multiple * r.from_to(1, 3);
  o.max_running_requests = r.from_to(1, 9);
  o.chunked_prefill_size = r.one_in(4) ? r.from_to(1, 5) : r.from_to(6, 120);
  o.prefix_cache = !r.one_in(5);
  o.cache_answers = !r.one_in(3);
  o.admission = r.one_in(2) ? Admission::kEstimate : Admission::kWorstCase;
  o.append_token = subject.append_token;
  if (subject.can_draft && !r.one_in(3)) o.num_draft_tokens = r.from_to(1, 4);
  if (r.one_in(5)) return o;
  const StateLayout layout(subject.config, o.page_size, o.num_draft_tokens > 0);
  int64_t needed = 0;
  for (const Request& q : requests) {
    const int64_t length = static_cast<int64_t>(q.prompt_ids.size()) + q.sampling.max_new_tokens;
    needed = std::max(needed, layout.fixed_bytes() + layout.history_bytes(length));
  }
  o.state_bytes = needed + (r.one_in(3) ? 0 : needed * r.below(40) / 10);
  return o;
}

/// What is compared of two answers; empty when they are the same.
inline std::string difference(const Completion& a, const Completion& b) {
  const auto same_floats = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() &&
           (x.empty() || std::memcmp(x.data(), y.data(), x.size() * 4) == 0);
  };
  if (a.token_ids != b.token_ids) return "token_ids";
  if (!same_floats(a.log_probs, b.log_probs)) return "log_probs";
  if (a.finish_reason != b.finish_reason) return "finish_reason";
  if (a.matched_stop != b.matched_stop) return "matched_stop";
  if (a.text != b.text) return "text";
  if (a.replay.routes != b.replay.routes) return "routes";
  if (a.replay.picks != b.replay.picks) return "picks";
  if (!same_floats(a.prompt_log_probs, b.prompt_log_probs)) return "prompt_log_probs";
  if (a.lists.top != b.lists.top || a.lists.listed != b.lists.listed) return "lists";
  if (a.prompt_lists.top != b.prompt_lists.top) return "prompt_lists";
  return "";
}

struct ScheduleResult {
  EngineOptions options;
  std::vector<Request> requests;
  std::vector<Completion> done;
  std::map<std::pair<int64_t, int64_t>, bool> aborted;  // requests that were aborted at some time
  EngineCounters counters;
  int64_t num_steps = 0;
  int64_t num_pauses = 0;
};

/// Runs one schedule to its end. Checks what holds at every step: bytes within the budget,
/// progress, and after the last one that all memory came back.
inline ScheduleResult run_schedule(const ScheduleSubject& subject, uint64_t seed,
                                   int64_t num_requests) {
  TestRandom r(seed);
  ScheduleResult result;
  result.requests = random_requests(r, subject, num_requests);
  result.options = random_options(r, subject, result.requests);
  if (subject.set_weights) subject.set_weights(0);
  const std::unique_ptr<Engine> engine = subject.make_engine(result.options);
  const int64_t budget = result.options.state_bytes;
  size_t next = 0;
  int64_t idle = 0, max_steps = 200;
  for (const Request& q : result.requests) {
    max_steps += 4 * (static_cast<int64_t>(q.prompt_ids.size()) +
                      static_cast<int64_t>(q.seeds.size()) * (q.sampling.max_new_tokens + 100));
  }
  const bool may_change = subject.set_weights != nullptr && r.one_in(2);
  int64_t version = 0;
  while (next < result.requests.size() || engine->has_work()) {
    for (int64_t n = r.one_in(3) ? r.below(4) : 0; n > 0 && next < result.requests.size(); --n) {
      const int64_t id = engine->submit(result.requests[next]);
      EXPECT_EQ(id, static_cast<int64_t>(next));
      ++next;
    }
    if (next > 0 && r.one_in(60)) {
      const int64_t id = r.below(static_cast<int64_t>(next));
      engine->abort(id);
      result.aborted[{id, 0}] = true;
    }
    if (r.one_in(50)) {
      ++result.num_pauses;
      engine->pause(r.one_in(2) ? PauseMode::kInPlace : PauseMode::kRetract);
      EXPECT_FALSE(engine->step());
      engine->resume();
    }
    if (may_change && r.one_in(40)) {
      engine->pause(PauseMode::kRetract);
      engine->set_weight_version(++version);
      subject.set_weights(version);
      EXPECT_EQ(engine->state_pools().used_bytes(), 0) << "states of old weights";
      engine->resume();
    }
    if (r.one_in(80)) engine->flush_cache();
    const bool stepped = engine->step();
    EXPECT_EQ(stepped, engine->has_work() || stepped) << "work, but no step";
    ++result.num_steps;
    idle = stepped ? 0 : idle + 1;
    if (budget > 0) {
      EXPECT_LE(engine->state_pools().kept_bytes(), budget);
    }
    if (result.num_steps > max_steps || idle > 200) {
      ADD_FAILURE() << "seed " << seed << ": no end after " << result.num_steps << " steps";
      break;
    }
    for (Completion& c : engine->take_completions()) result.done.push_back(std::move(c));
    if (testing::Test::HasFailure()) break;
  }
  for (Completion& c : engine->take_completions()) result.done.push_back(std::move(c));
  result.counters = engine->counters();
  if (result.options.admission == Admission::kWorstCase && result.num_pauses == 0 && version == 0) {
    EXPECT_EQ(result.counters.num_preemptions, 0) << "the worst case was set aside";
  }
  engine->flush_cache();
  EXPECT_EQ(engine->state_pools().used_bytes(), 0) << "memory was lost";
  size_t expected = 0;
  for (const Request& q : result.requests) expected += q.seeds.size();
  EXPECT_EQ(result.done.size(), expected);
  return result;
}

/// A request alone in an engine without any limit, cache or draft: the answers it should get.
inline std::vector<Completion> run_alone(const ScheduleSubject& subject, const Request& request) {
  EngineOptions options;
  options.prefix_cache = false;
  options.append_token = subject.append_token;
  const std::unique_ptr<Engine> engine = subject.make_engine(options);
  engine->submit(request);
  return engine->run_until_done();
}

/// Compares every answer of a schedule with the request alone. Answers that span weight versions
/// are skipped; aborted ones must be beginnings.
/// @return the first difference, "" without one.
inline std::string check_against_alone(const ScheduleSubject& subject,
                                       const ScheduleResult& result) {
  std::map<std::pair<int64_t, int64_t>, std::vector<Completion>> alone;  // by request, version
  for (const Completion& c : result.done) {
    if (!c.weight_versions.empty()) continue;
    // Version of the tokens; what was aborted before its first token has none.
    if (c.token_ids.empty() && c.finish_reason == FinishReason::kAbort) continue;
    std::vector<Completion>& answers = alone[{c.request_id, c.weight_version}];
    const Request& request = result.requests[static_cast<size_t>(c.request_id)];
    if (answers.empty()) {
      if (subject.set_weights) subject.set_weights(c.weight_version);
      answers = run_alone(subject, request);
    }
    Completion want = answers[static_cast<size_t>(c.sample)];
    const std::string where = str_cat("request ", c.request_id, " sample ", c.sample, ": ");
    if (c.finish_reason == FinishReason::kAbort && want.token_ids.size() >= c.token_ids.size()) {
      want.token_ids.resize(c.token_ids.size());
      want.log_probs.resize(c.token_ids.size());
      if (want.token_ids != c.token_ids || want.log_probs != c.log_probs) {
        return where + "is no beginning of what it should be";
      }
      continue;
    }
    const std::string what = difference(c, want);
    if (!what.empty()) return where + what;
  }
  return "";
}

}  // namespace fathom
