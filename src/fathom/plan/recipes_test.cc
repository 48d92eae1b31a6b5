// The recipe files of configs/: they parse, they plan, they fit, and their dry runs pass.
#include <gtest/gtest.h>

#include "fathom/base/error.h"
#include "fathom/plan/dry_run.h"
#include "fathom/plan/from_options.h"
#include "fathom/plan/plan.h"

namespace fathom {
namespace {

struct Recipe {
  const char* file;
  const char* machine;
  dist::MeshShape mesh;
  std::vector<int64_t> layers;  // by stage
};

const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all = {
      {"v4flash_h200_8x8", "H200", {.tp = 8, .pp = 8, .ep = 8}, {4, 6, 6, 6, 6, 6, 6, 3}},
      {"v4flash_gb300_8x4_tp8pp4", "GB300", {.tp = 8, .pp = 4, .ep = 8}, {11, 11, 11, 10}},
      {"v4flash_gb300_8x4_tp2pp8cp2",
       "GB300",
       {.tp = 2, .cp = 2, .pp = 8, .ep = 4},
       {4, 6, 6, 6, 6, 6, 6, 3}},
      {"v4pro_h200_32x8", "H200", {.tp = 8, .dp = 4, .pp = 8, .ep = 32}, {7, 8, 8, 8, 8, 8, 8, 6}},
  };
  return all;
}

config::ParsedCommand parse(config::Command command, const char* file,
                            std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"--config", str_cat(FATHOM_SOURCE_DIR, "/configs/", file, ".json")});
  return config::parse_command_line(command, more, {});
}

TEST(Recipes, HaveTheLayoutsOfTheRecipeAndFit) {
  for (const Recipe& recipe : recipes()) {
    const PlanRequest r = plan_request(parse(config::Command::kPlan, recipe.file));
    EXPECT_EQ(r.machine.name, recipe.machine);
    EXPECT_EQ(r.layout.mesh.text(), recipe.mesh.text()) << recipe.file;
    EXPECT_TRUE(r.sequence_parallel);
    EXPECT_EQ(r.layout.precision, Precision::kParityFp8);
    EXPECT_EQ(r.batch.samples, 256);
    EXPECT_EQ(r.batch.samples_per_micro_batch, 1);
    EXPECT_FALSE(r.engine.shares_layout);
    EXPECT_TRUE(r.engine.dp_attention);
    const Plan plan = make_plan(r);
    EXPECT_TRUE(plan.fits) << plan_table(r, plan);
    std::vector<int64_t> layers;
    for (const LayerRange& stage : plan.stages) layers.push_back(stage.size());
    EXPECT_EQ(layers, recipe.layers) << recipe.file;
  }
}

TEST(Recipes, TheirDryRunsPass) {
  for (const Recipe& recipe : recipes()) {
    const config::ParsedCommand command =
        parse(config::Command::kTrain, recipe.file, {"--dry-run"});
    const DryRun run = dry_run(plan_request(command));
    EXPECT_EQ(run.fault, "") << recipe.file;
    EXPECT_EQ(run.num_ranks, recipe.mesh.size());
  }
}

TEST(Recipes, WhatIsNotBuiltIsStillRefusedByARun) {
  EXPECT_THROW(parse(config::Command::kTrain, "v4flash_h200_8x8"), ConfigError);
  // On paper, too, an option must make sense.
  EXPECT_THROW(parse(config::Command::kPlan, "v4flash_h200_8x8", {"--advantage-estimator", "ppo"}),
               ConfigError);
  EXPECT_THROW(plan_request(parse(config::Command::kPlan, "v4flash_h200_8x8",
                                  {"--tensor-model-parallel-size", "3"})),
               ConfigError);
}

TEST(FromOptions, OneRankOfTheTinyModelOnACpu) {
  const PlanRequest r = plan_request(
      config::parse_command_line(config::Command::kPlan,
                                 {"--model", "tiny", "--num-procs", "4", "--max-tokens-per-gpu",
                                  "100", "--sequence-tokens", "30", "--precision", "fp32"},
                                 {}));
  EXPECT_TRUE(r.machine.is_cpu);
  EXPECT_EQ(r.num_ranks(), 4);
  EXPECT_EQ(r.layout.mesh.dp, 4);
  EXPECT_EQ(r.batch.samples_per_micro_batch, 3);
  EXPECT_EQ(r.num_micro_batches(), 22);  // 64 samples of a rank
  EXPECT_TRUE(r.engine.shares_layout);
}

TEST(FromOptions, ModelsWithoutKnownSizesAreRefused) {
  EXPECT_THROW(
      plan_request(config::parse_command_line(
          config::Command::kPlan, {"--model-name", "another", "--model-org", "somebody"}, {})),
      ConfigError);
}

}  // namespace
}  // namespace fathom
