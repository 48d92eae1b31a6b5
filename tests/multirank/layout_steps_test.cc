// Ranks that share a model: who has which part, what they choose for the tokens that rollout
// recorded, and three steps of the optimizer.
#include <gtest/gtest.h>

#include "fathom/base/hash.h"
#include "fathom/parallel/model_parts.h"
#include "fathom/parallel/shard_rules.h"
#include "fathom/train/optimizer.h"
#include "fathom/train/replay_check.h"
#include "fathom/train/supervised.h"
#include "tests/multirank/layout_cases.h"

namespace fathom {
namespace {

std::string hash_of(const Tensor& t) {
  return sha256_hex(std::string_view(reinterpret_cast<const char*>(t.bytes()),
                                     static_cast<size_t>(t.num_bytes())));
}

/// The model's rules and those that plan, checkpoints and conversions ask are the same.
TEST(Shards, AreThoseOfTheShardRules) {
  for (const Case& c : kLayouts) {
    for (const Precision precision : {Precision::kFp32, Precision::kParityFp8}) {
      const ModelConfig config = config_of(c.model);
      run_ranks(c, [&](const ExecContext&, dist::World& world) {
        const RankGroups groups(world.everyone(), c.mesh, c.sequence_parallel,
                                precision == Precision::kParityFp8 ? 128 : 16);
        const Weights mine = make_weights(config, true, groups.layout);
        std::map<std::string, const Parameter*> by_name;
        for_each_parameter(mine, [&](const Parameter& p) { by_name[p.name] = &p; });
        const ShardLayout layout{.mesh = groups.shape, .precision = precision};
        const Weights whole = make_weights(config);
        for_each_parameter(whole, [&](const Parameter& p) {
          const Shard shard = shard_of(config, layout, world.rank(), p.name, p.shape);
          FATHOM_ASSERT(shard.held == by_name.contains(p.name), p.name);
          if (!shard.held) return;
          const Parameter& held = *by_name.at(p.name);
          FATHOM_ASSERT(held.shape == shard.shape(p.shape) && held.is_sharded() == !shard.whole(),
                        p.name, shape_to_string(held.shape));
          FATHOM_ASSERT(
              shard.whole() || (held.shard_axis == shard.axis && held.shard_begin == shard.begin),
              p.name);
          FATHOM_ASSERT((shard.replica == 0) == groups.is_first_replica(held), p.name);
        });
      });
    }
  }
}

TEST(Shards, AreDrawnAsOneRankWouldDrawThem) {
  Weights whole = make_weights(config_of(Model::kTiny));
  init_random_weights(whole, 11);
  run_ranks(kLayouts[13], [&](const ExecContext&, dist::World& world) {
    const RankGroups groups(world.everyone(), kLayouts[13].mesh, true, 16);
    Weights drawn = make_weights(whole.config, true, groups.layout);
    init_random_weights(drawn, 11);
    FATHOM_ASSERT(same_masters(drawn, shard_weights(whole, groups.layout)));
    const Weights together = gather_weights(groups, drawn);
    FATHOM_ASSERT(world.rank() != 0 || same_masters(together, whole));
  });
}

class Steps : public ::testing::TestWithParam<Case> {};
std::string name_of_case(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Tiny, Steps, ::testing::ValuesIn(kLayouts, kLayouts + kNumTiny),
                         name_of_case);

/// What one rank chooses for the sequences, as rollout would have recorded it.
std::vector<Sample> recorded_samples() {
  const Weights& w = whole_model(Model::kTiny);
  ThreadPool pool(1);
  const ExecContext ctx = {&pool, detect_cpu_isa()};
  std::vector<Sample> samples;
  for (const std::vector<int32_t>& ids : some_sequences(Model::kTiny)) {
    if (ids.size() < 3) continue;
    Sample sample;
    sample.index = static_cast<int64_t>(samples.size());
    sample.tokens = ids;
    sample.response_length = static_cast<int64_t>(ids.size()) - 2;
    sample.replay = {.num_layers = w.config.num_hidden_layers,
                     .num_slots = w.config.num_experts_per_tok,
                     .num_indexer_layers = w.config.num_indexer_layers(),
                     .index_topk = w.config.index_topk};
    Batch batch;
    batch.token_ids.assign(ids.begin(), ids.end() - 1);
    batch.segments.push_back({.start_pos = 0, .num_tokens = batch.num_tokens()});
    batch.segments[0].replay_out = &sample.replay;
    forward_layers(ctx, w, batch, embed(ctx, w, batch));
    samples.push_back(std::move(sample));
  }
  return samples;
}

ReplayCheck check_on(const Case& c, const std::vector<Sample>& samples) {
  std::vector<const Sample*> pointers;
  for (const Sample& s : samples) pointers.push_back(&s);
  ReplayCheck result;
  run_ranks(c, [&](const ExecContext& ctx, dist::World& world) {
    const RankModel rank = make_rank_model(ctx, world, c, Precision::kFp32);
    const ReplayCheck check = check_replay(ctx, rank.weights, pointers, 64);
    if (world.rank() + 1 == world.size()) result = check;  // every rank has all of it
  });
  return result;
}

TEST_P(Steps, RoutesAndPicksAreThoseOfOneRank) {
  static const std::vector<Sample> samples = recorded_samples();
  const ReplayCheck clean = check_on(GetParam(), samples);
  EXPECT_GT(clean.num_tokens, 100);
  EXPECT_FALSE(clean.first) << clean.first->text();
  // One token's slots the other way round, one token's picks of another.
  std::vector<Sample> planted = samples;
  int32_t* routes = planted[2].replay.route_row(31, 1);
  std::swap(routes[0], routes[1]);
  int32_t* picks = planted[0].replay.pick_row(9, 0);
  std::copy_n(planted[0].replay.pick_row(36 - 5, 0), planted[0].replay.index_topk, picks);
  const ReplayCheck found = check_on(GetParam(), planted);
  EXPECT_EQ(found.num_route_mismatches, 1);
  EXPECT_EQ(found.num_pick_mismatches, 1);
  ASSERT_TRUE(found.first);
  EXPECT_EQ(found.first->sample, 0);
  EXPECT_EQ(found.first->layer, 1);
  EXPECT_EQ(found.first->token, 9);
}

/// Three steps of the optimizer, with the MTP block.
struct Trained {
  std::vector<double> losses, norms;
  std::string masters;  // hash of the whole model's
};

Trained train_on(const Case& c) {
  Trained result;
  run_ranks(c, [&](const ExecContext& ctx, dist::World& world) {
    RankModel rank = make_rank_model(ctx, world, c, Precision::kFp32);
    Optimizer optimizer(
        rank.weights, {}, [](const Parameter&) { return true; }, rank.groups);
    std::vector<SupervisedExample> examples;
    for (const auto& ids : some_sequences(c.model)) {
      if (ids.size() >= 2) examples.push_back({ids, 1});
    }
    for (int step = 0; step < 3; ++step) {
      const SupervisedMetrics m = supervised_forward_backward(
          ctx, rank.weights, examples, {.max_tokens_per_micro_batch = 64}, rank.groups);
      const double norm = optimizer.step(ctx, 1e-3);
      if (world.rank() != 0) continue;
      result.losses.insert(result.losses.end(), {m.loss, m.mtp_loss});
      result.norms.push_back(norm);
    }
    // Ranks that have the same part have the same bits.
    for_each_parameter(rank.weights, [&](Parameter& p) {
      const dist::Group& replicas = rank.groups.replicas(p);
      for (const std::string& hash : replicas.all_gather(hash_of(p.master))) {
        FATHOM_ASSERT(hash == hash_of(p.master), p.name);
      }
      if (p.is_sharded() || is_routed_expert(p)) return;
      for (const std::string& hash : rank.groups.layout.tp.all_gather(hash_of(p.master))) {
        FATHOM_ASSERT(hash == hash_of(p.master), p.name);
      }
    });
    std::string bytes;
    const Weights whole = gather_weights(rank.groups, rank.weights);
    for_each_parameter(whole, [&](const Parameter& p) {
      if (p.master.defined()) bytes += hash_of(p.master);
    });
    if (world.rank() == 0) result.masters = sha256_hex(bytes);
  });
  return result;
}

TEST_P(Steps, StayTogetherAndNearOneRank) {
  static const Trained one = train_on({"One", {}, false});
  const Trained many = train_on(GetParam()), again = train_on(GetParam());
  EXPECT_EQ(many.masters, again.masters) << "another run has other bits";
  ASSERT_EQ(many.losses.size(), one.losses.size());
  EXPECT_EQ(many.losses[0], one.losses[0]);  // before any update: bit-equal
  EXPECT_EQ(many.losses[1], one.losses[1]);
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(many.losses[i], one.losses[i], 1e-5 * std::abs(one.losses[i])) << i;
  }
  EXPECT_NEAR(many.norms[0], one.norms[0], 1e-6 * one.norms[0]);
}

}  // namespace
}  // namespace fathom
