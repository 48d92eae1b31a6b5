#include "fathom/plan/dry_run.h"

#include <gtest/gtest.h>

#include "fathom/plan/recipes_for_test.h"
#include "fathom/plan/traffic.h"

namespace fathom {
namespace {

std::string name_of(int kind) { return traffic_name(static_cast<Traffic>(kind)); }

PlanRequest tiny_request(dist::MeshShape mesh, bool sequence_parallel) {
  PlanRequest r;
  r.model_name = "tiny";
  r.config = tiny_shape();
  r.layout.mesh = mesh;
  r.sequence_parallel = sequence_parallel;
  r.machine = *find_machine("CPU");
  r.batch = {.samples = 12, .sequence_tokens = 32, .response_tokens = 16};
  return r;
}

const PlanRequest& mixed() {
  static const PlanRequest r =
      tiny_request({.tp = 2, .cp = 2, .dp = 2, .pp = 3, .ep = 2, .etp = 2}, true);
  return r;
}

TEST(DryRun, EveryLayoutOfTheRecipesRuns) {
  struct Case {
    PlanRequest request;
    int ranks, micro_batches;
  };
  for (const Case& c : {Case{h200_8x8(), 64, 256}, Case{gb300_tp8pp4(), 32, 256},
                        Case{gb300_tp2pp8cp2(), 32, 256}, Case{pro_h200_32x8(), 256, 64}}) {
    const DryRun run = dry_run(c.request);
    EXPECT_EQ(run.fault, "") << dry_run_table(c.request, run);
    EXPECT_EQ(run.num_ranks, c.ranks);
    EXPECT_EQ(c.request.num_micro_batches(), c.micro_batches);
    const dist::MeshShape& mesh = c.request.layout.mesh;
    EXPECT_EQ(run.training.num_transfers,
              int64_t{2} * c.micro_batches * (mesh.pp - 1) * (c.ranks / mesh.pp));
    EXPECT_EQ(run.in_flight.front(), mesh.pp);
    EXPECT_EQ(dry_run_json(c.request, run)["ok"], true);
  }
}

TEST(DryRun, MixedLayoutsOfTheTinyModelRun) {
  for (bool sequence_parallel : {false, true}) {
    for (const dist::MeshShape& mesh :
         {dist::MeshShape{}, dist::MeshShape{.dp = 4}, dist::MeshShape{.tp = 8, .ep = 8},
          dist::MeshShape{.pp = 3}, dist::MeshShape{.cp = 4}, dist::MeshShape{.dp = 8, .ep = 8},
          dist::MeshShape{.tp = 2, .cp = 2, .dp = 2, .pp = 2, .ep = 2},
          dist::MeshShape{.tp = 4, .dp = 2, .pp = 3, .ep = 2, .etp = 4}}) {
      const PlanRequest r = tiny_request(mesh, sequence_parallel);
      EXPECT_EQ(dry_run(r).fault, "") << mesh.text();
    }
  }
}

TEST(DryRun, AShardThatIsMissingTwiceOrTooLongIsFound) {
  const ShardTable table(mixed());
  const std::vector<PlacedShard> good = standing_shards(mixed(), table);
  EXPECT_EQ(tiling_fault(table, good), "");
  for (size_t i = 0; i < good.size(); i += 7) {
    if (good[i].shard.begin == good[i].shard.end) continue;
    std::vector<PlacedShard> bad = good;
    bad.erase(bad.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_NE(tiling_fault(table, bad).find(good[i].parameter->name), std::string::npos);
    bad = good;
    bad.push_back(good[i]);
    EXPECT_NE(tiling_fault(table, bad).find(good[i].parameter->name), std::string::npos);
    bad = good;
    ++bad[i].shard.end;  // overlaps the next one, or reaches behind the end
    EXPECT_NE(tiling_fault(table, bad).find(good[i].parameter->name), std::string::npos);
    bad = good;
    ++bad[i].shard.begin;
    EXPECT_NE(tiling_fault(table, bad).find(good[i].parameter->name), std::string::npos);
  }
}

/// The same steps without the one with this number.
StepSource without(StepSource source, int number) {
  return [source = std::move(source), number, at = 0](CommStep* step) mutable {
    if (at++ != number) return source(step);
    CommStep dropped;
    return source(&dropped) && source(step);
  };
}

TEST(DryRun, AForgottenMessageIsFoundWhereverItIs) {
  const ShardTable table(mixed());
  const PaperRanks ranks(mixed(), table, StepKind::kTraining);
  EXPECT_EQ(run_on_paper(ranks.sources(), name_of).fault, "");
  for (size_t rank : {size_t{0}, size_t{5}, size_t{9}, size_t{15}, size_t{23}}) {
    int steps = 0;
    StepSource count = ranks.sources()[rank];
    for (CommStep step; count(&step); step = {}) ++steps;
    ASSERT_GT(steps, 100);
    for (int number = 0; number < steps; number += 13) {
      std::vector<StepSource> bad = ranks.sources();
      bad[rank] = without(std::move(bad[rank]), number);
      EXPECT_NE(run_on_paper(std::move(bad), name_of).fault, "") << rank << ", " << number;
    }
  }
}

TEST(DryRun, MessagesOfDifferentSizeAreFound) {
  const ShardTable table(mixed());
  const PaperRanks ranks(mixed(), table, StepKind::kLogProbs);
  std::vector<StepSource> bad = ranks.sources();
  StepSource source = bad[3];
  bad[3] = [source, at = 0](CommStep* step) mutable {
    if (!source(step)) return false;
    if (at++ == 20) {
      step->num_bytes += 4;
      for (Transfer& t : step->transfers) t.num_bytes += 4;
    }
    return true;
  };
  EXPECT_NE(run_on_paper(std::move(bad), name_of).fault.find("bytes"), std::string::npos);
}

}  // namespace
}  // namespace fathom
