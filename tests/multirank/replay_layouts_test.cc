// What rollout chose against what the trainer chooses under layouts: the record of a token is
// compared with what the rank of its layer and row did, and a planted fault is found where it is.
#include <gtest/gtest.h>

#include "fathom/train/policy_step.h"
#include "fathom/train/replay_check.h"
#include "tests/multirank/layouts.h"

namespace fathom {
namespace {

/// Samples with the choices and log-probs of one rank, as rollout has them.
std::vector<Sample> roll_out(Weights& w) {
  ThreadPool pool(2);
  const ExecContext ctx = {&pool, detect_cpu_isa()};
  std::vector<Sample> samples;
  for (const int64_t n : {33, 61, 18, 47}) {
    Sample s;
    s.index = static_cast<int64_t>(samples.size());
    s.tokens = random_ids(static_cast<uint64_t>(n), n, w.config.vocab_size);
    s.response_length = n / 2;
    s.replay = {.num_layers = w.config.num_hidden_layers,
                .num_slots = w.config.num_experts_per_tok,
                .num_indexer_layers = w.config.num_indexer_layers(),
                .index_topk = w.config.index_topk};
    Batch batch;
    batch.token_ids.assign(s.tokens.begin(), s.tokens.end() - 1);
    batch.segments = {{.num_tokens = n - 1, .replay_out = &s.replay}};
    forward_layers(ctx, w, batch, embed(ctx, w, batch));
    s.rollout_log_probs = score_samples(ctx, w, {&s}, 1.0).front();
    samples.push_back(std::move(s));
  }
  return samples;
}

std::vector<const Sample*> pointers_to(const std::vector<Sample>& samples) {
  std::vector<const Sample*> pointers;
  for (const Sample& s : samples) pointers.push_back(&s);
  return pointers;
}

class Layouts : public ::testing::TestWithParam<TestLayout> {
 protected:
  template <typename Body>
  void on_ranks(const Body& body) {
    expect_all_well(dist::run_local_ranks(GetParam().num_ranks(), [&](dist::World& world) {
      ThreadPool pool(1);
      const ExecContext ctx = {&pool, detect_cpu_isa()};
      const RankGroups ranks = groups_of(GetParam(), world, whole_.config);
      Weights w = part_of(whole_, ranks.layout);
      body(ctx, w, ranks);
    }));
  }
  Weights whole_ = make_six_layers(11);
};
INSTANTIATE_TEST_SUITE_P(
    Replay, Layouts,
    ::testing::Values(TestLayout{.pp = 3}, TestLayout{.cp = 3},
                      TestLayout{.tp = 2, .sequence_parallel = true}, TestLayout{.dp = 2, .ep = 2},
                      TestLayout{.pp = 2, .cp = 2, .tp = 2, .sequence_parallel = true}),
    name_of_layout);

TEST_P(Layouts, TheCheckFindsNothingButWhatIsPlanted) {
  const std::vector<Sample> samples = roll_out(whole_);
  std::vector<Sample> wrong_route = samples, wrong_pick = samples;
  int32_t* route = wrong_route[1].replay.route_row(41, 4);
  const int32_t chosen = route[0];
  route[0] = static_cast<int32_t>((chosen + 1) % whole_.config.n_routed_experts);
  wrong_pick[3].replay.pick_row(30, 1)[0] += 1;  // the second indexer's: layer 3
  on_ranks([&](const ExecContext& ctx, Weights& w, const RankGroups& ranks) {
    const ReplayCheck clean = check_replay(ctx, w, pointers_to(samples), 100, ranks);
    EXPECT_EQ(clean.num_tokens, 33 + 61 + 18 + 47 - 4);
    EXPECT_FALSE(clean.first) << clean.first->text();
    EXPECT_EQ(clean.num_route_mismatches + clean.num_pick_mismatches, 0);

    const ReplayCheck routes = check_replay(ctx, w, pointers_to(wrong_route), 100, ranks);
    ASSERT_TRUE(routes.first);
    EXPECT_EQ(routes.first->sample, 1);
    EXPECT_EQ(routes.first->layer, 4);
    EXPECT_EQ(routes.first->token, 41);
    EXPECT_FALSE(routes.first->in_picks);
    EXPECT_EQ(routes.first->trainer[0], chosen);
    EXPECT_EQ(routes.num_route_mismatches, 1);

    const ReplayCheck picks = check_replay(ctx, w, pointers_to(wrong_pick), 100, ranks);
    ASSERT_TRUE(picks.first);
    EXPECT_EQ(picks.first->sample, 3);
    EXPECT_EQ(picks.first->layer, 3);
    EXPECT_EQ(picks.first->token, 30);
    EXPECT_TRUE(picks.first->in_picks);
    EXPECT_EQ(picks.num_pick_mismatches, 1);
  });
}

TEST_P(Layouts, ReplayedRoutesReachTheRankThatHasTheRow) {
  const std::vector<Sample> samples = roll_out(whole_);
  std::vector<Sample> shifted = samples;
  int32_t* route = shifted[1].replay.route_row(41, 4);
  route[0] = static_cast<int32_t>((route[0] + 1) % whole_.config.n_routed_experts);
  if (route[0] == route[1])
    route[0] = static_cast<int32_t>((route[0] + 1) % whole_.config.n_routed_experts);
  const auto step = [](const ExecContext& ctx, Weights& w, const std::vector<Sample>& of,
                       const RankGroups& ranks) {
    std::vector<TrainSample> train;
    for (const Sample& s : of) train.push_back({&s, s.index % 2 == 0 ? 0.5 : -0.7});
    for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
    return policy_forward_backward(
        ctx, w, train, 4.0,
        {.max_tokens_per_micro_batch = 90, .observe_entropy = true, .replay_routes = true}, ranks);
  };
  ThreadPool pool(1);
  const ExecContext one = {&pool, detect_cpu_isa()};
  Weights alone = part_of(whole_, {});
  const PolicyMetrics right = step(one, alone, samples, {}), wrong = step(one, alone, shifted, {});
  EXPECT_EQ(right.train_rollout_logprob_abs_diff, 0.0);
  EXPECT_GT(wrong.train_rollout_logprob_abs_diff, 0.0);
  on_ranks([&](const ExecContext& ctx, Weights& w, const RankGroups& ranks) {
    const PolicyMetrics a = step(ctx, w, samples, ranks), b = step(ctx, w, shifted, ranks);
    EXPECT_EQ(a.train_rollout_logprob_abs_diff, 0.0);
    EXPECT_EQ(a.loss, right.loss);
    EXPECT_EQ(a.entropy, right.entropy);
    EXPECT_EQ(b.train_rollout_logprob_abs_diff, wrong.train_rollout_logprob_abs_diff);
    EXPECT_EQ(b.loss, wrong.loss);
  });
}

}  // namespace
}  // namespace fathom
