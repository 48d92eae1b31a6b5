// Speculative decoding on the trained tiny base: the same tokens and log-probs as without it, for
// every way to sample, and how often the MTP head guesses right.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/checkpoint/load.h"
#include "fathom/rollout/generate.h"
#include "fathom/rollout/random_schedule.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

class SpeculativeTest : public ::testing::Test {
 protected:
  static const ExecContext& context() {
    static ThreadPool pool(2);
    static const ExecContext ctx{&pool, detect_cpu_isa()};
    return ctx;
  }
  static const Weights& weights() {
    static const Weights w = load_weights(context(), source_path("configs/tiny/base"));
    return w;
  }
  static const Tokenizer& tokenizer() {
    static const Tokenizer t = Tokenizer::load(source_path("configs/tiny/base"));
    return t;
  }

  static std::vector<Request> requests(const SamplingParams& sampling) {
    std::vector<Request> all;
    std::string lines;
    for (const char* sum : {"7+9+4+6=", "3+8+0+4=", "1+1+2+9=", "5+0+6+2="}) {
      lines += str_cat(R"({"messages": [{"role": "user", "content": ")", sum,
                       R"("}], "thinking_mode": "chat"})", "\n");
    }
    const auto prompts = read_generate_lines(lines, "prompts", weights().config, &tokenizer());
    for (size_t i = 0; i < prompts.size(); ++i) {
      Request r;
      r.prompt_ids = prompts[i];
      r.sampling = sampling;
      r.seeds = {sample_seed(3, i), sample_seed(4, i)};
      r.record_replay = true;
      all.push_back(r);
    }
    return all;
  }

  static std::vector<Completion> run(const std::vector<Request>& all, int64_t num_drafts,
                                     EngineCounters* counters = nullptr) {
    EngineOptions options;
    options.num_draft_tokens = num_drafts;
    options.append_token = append_token_of(tokenizer());
    Engine engine(context(), weights(), options);
    for (const Request& r : all) engine.submit(r);
    std::vector<Completion> done = engine.run_until_done();
    if (counters != nullptr) *counters = engine.counters();
    return done;
  }
};

TEST_F(SpeculativeTest, NoWayToSampleSeesADifference) {
  std::vector<std::pair<std::string, SamplingParams>> ways;
  const auto add = [&](const char* name, const auto& change) {
    SamplingParams p;
    p.max_new_tokens = 48;
    change(&p);
    ways.emplace_back(name, p);
  };
  add("greedy", [](SamplingParams* p) { p->temperature = 0.0f; });
  add("temperature 1", [](SamplingParams*) {});
  add("temperature 0.7, top-p 0.9", [](SamplingParams* p) {
    p->temperature = 0.7f;
    p->top_p = 0.9f;
  });
  add("top-k 5, ignoring the end", [](SamplingParams* p) {
    p->top_k = 5;
    p->ignore_eos = true;
  });
  add("stop strings", [](SamplingParams* p) {
    p->stop = {"1", "="};
    p->ignore_eos = true;
  });
  add("stop tokens", [](SamplingParams* p) { p->stop_token_ids = {7, 9}; });
  add("penalties", [](SamplingParams* p) {
    p->frequency_penalty = 0.7f;
    p->presence_penalty = 0.3f;
    p->min_new_tokens = 12;
  });
  add("one token", [](SamplingParams* p) { p->max_new_tokens = 1; });
  for (const auto& [name, sampling] : ways) {
    const std::vector<Request> all = requests(sampling);
    const std::vector<Completion> want = run(all, 0);
    for (const int64_t drafts : {1, 3, 6}) {
      EngineCounters counters;
      const std::vector<Completion> got = run(all, drafts, &counters);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(difference(got[i], want[i]), "") << name << ", " << drafts << " drafts, " << i;
      }
      std::printf("%-28s %ld drafts: %ld of %ld right (%.2f), %ld tokens in %ld steps\n",
                  name.c_str(), drafts, counters.num_accepted, counters.num_drafted,
                  counters.acceptance_rate(), counters.num_generated_tokens, counters.num_steps);
    }
  }
}

TEST_F(SpeculativeTest, TheTrainedHeadIsRightMoreOftenThanNot) {
  SamplingParams greedy;
  greedy.temperature = 0.0f;
  greedy.max_new_tokens = 48;
  SamplingParams sampled;
  sampled.max_new_tokens = 48;
  for (const SamplingParams& p : {greedy, sampled}) {
    EngineCounters counters;
    run(requests(p), 1, &counters);
    EXPECT_GT(counters.acceptance_rate(), 0.5) << "temperature " << p.temperature;
  }
}

}  // namespace
}  // namespace fathom
