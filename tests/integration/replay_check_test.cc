// Captured routes and indexer picks against the trainer's own, with a fault planted.
#include "fathom/train/replay_check.h"

#include "fathom/base/error.h"
#include "fathom/rollout/engine.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

class ReplayCheckTest : public ::testing::Test {
 protected:
  /// Answers of the engine as samples of training.
  std::vector<Sample> roll_out(EngineOptions options) {
    options.state_bytes = 600000;  // small enough to preempt
    Engine engine(ctx_, w_, options);
    for (uint64_t i = 0; i < 5; ++i) {
      Request r;
      r.prompt_ids = random_ids(i / 2, 20 + static_cast<int64_t>(i), w_.config.vocab_size);
      r.seeds = {sample_seed(1, 2 * i), sample_seed(1, 2 * i + 1)};
      r.sampling.max_new_tokens = 30;
      r.record_replay = true;
      engine.submit(r);
    }
    std::vector<Sample> samples;
    for (const Completion& c : engine.run_until_done()) {
      Sample s;
      s.index = static_cast<int64_t>(samples.size());
      s.tokens = random_ids(static_cast<uint64_t>(c.request_id) / 2, 20 + c.request_id,
                            w_.config.vocab_size);
      s.tokens.insert(s.tokens.end(), c.token_ids.begin(), c.token_ids.end());
      s.response_length = static_cast<int64_t>(c.token_ids.size());
      s.replay = c.replay;
      samples.push_back(s);
    }
    return samples;
  }
  ReplayCheck check(const std::vector<Sample>& samples, int64_t max_tokens = 100) {
    std::vector<const Sample*> pointers;
    for (const Sample& s : samples) pointers.push_back(&s);
    return check_replay(ctx_, w_, pointers, max_tokens);
  }

  Weights w_ = make_tiny_weights(11);
  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
};

TEST_F(ReplayCheckTest, TheTrainerChoosesWhatRolloutChose) {
  for (const int64_t drafts : {0, 3}) {
    const std::vector<Sample> samples = roll_out({.num_draft_tokens = drafts});
    int64_t num_tokens = 0;
    for (const Sample& s : samples) num_tokens += static_cast<int64_t>(s.tokens.size()) - 1;
    const ReplayCheck result = check(samples);
    EXPECT_EQ(result.num_tokens, num_tokens);
    EXPECT_FALSE(result.first) << result.first->text();
    EXPECT_EQ(result.num_route_mismatches + result.num_pick_mismatches, 0);
  }
}

TEST_F(ReplayCheckTest, ThePlantedDifferenceIsTheOneReported) {
  std::vector<Sample> samples = roll_out({});
  const int64_t n = w_.config.n_routed_experts;
  int32_t* route = samples[4].replay.route_row(25, 2);
  route[1] = static_cast<int32_t>((route[1] + 1) % n);
  route = samples[4].replay.route_row(31, 1);  // later in the text, earlier in the model
  const int32_t was = route[0];
  route[0] = static_cast<int32_t>((was + 1) % n);
  const ReplayCheck result = check(samples);
  ASSERT_TRUE(result.first);
  EXPECT_EQ(result.first->sample, 4);
  EXPECT_EQ(result.first->layer, 1);
  EXPECT_EQ(result.first->token, 31);
  EXPECT_FALSE(result.first->in_picks);
  EXPECT_EQ(result.first->trainer[0], was);
  EXPECT_EQ(result.num_route_mismatches, 2);
  EXPECT_NE(result.first->text().find("sample 4: layer 1, token 31: rollout routed to ["),
            std::string::npos);

  // Picks of the indexer's layer come before its routes.
  samples[4].replay.pick_row(40, 0)[0] += 1;
  const ReplayCheck picks = check(samples);
  ASSERT_TRUE(picks.first);
  EXPECT_TRUE(picks.first->in_picks);
  EXPECT_EQ(picks.first->layer, 1);
  EXPECT_EQ(picks.first->token, 40);
  EXPECT_EQ(picks.num_pick_mismatches, 1);
}

TEST_F(ReplayCheckTest, AChangedWeightIsSeenInTheLayerBehindIt) {
  const std::vector<Sample> samples = roll_out({});
  // The router of layer 1 decides otherwise; what layer 0 does is as before.
  Parameter& gate = w_.layers[1].ffn.gate;
  for (int64_t i = 0; i < gate.master.numel(); i += 3) gate.master.f32()[i] += 0.5f;
  gate.refresh();
  const ReplayCheck result = check(samples);
  ASSERT_TRUE(result.first);
  EXPECT_EQ(result.first->layer, 1);
  EXPECT_FALSE(result.first->in_picks);
}

TEST_F(ReplayCheckTest, ARecordThatDoesNotCoverItsSampleIsAnError) {
  std::vector<Sample> samples = roll_out({});
  samples[2].replay.truncate(10);
  EXPECT_THROW(check(samples), UserError);
  samples[2].replay = {};
  EXPECT_NO_THROW(check(samples)) << "nothing was recorded";
}

}  // namespace
}  // namespace fathom
