#include "fathom/plan/plan.h"

#include <gtest/gtest.h>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/plan/recipes_for_test.h"
#include "fathom/plan/step_traffic.h"

namespace fathom {
namespace {

int64_t count_elements(const ModelConfig& config, bool with_mtp) {
  int64_t n = 0;
  for_each_parameter(make_weights(config, with_mtp), [&](const Parameter& p) {
    if (p.kind != ParameterKind::kTable) n += p.numel();
  });
  return n;
}

TEST(ModelShapes, HaveTheParametersOfTheReleases) {
  EXPECT_EQ(count_elements(*named_shape("flash"), false), 284'332'240'471);
  EXPECT_EQ(count_elements(*named_shape("flash"), true), 290'942'289'362);
  EXPECT_EQ(count_elements(*named_shape("pro"), false), 1'572'997'201'763);
  EXPECT_EQ(count_elements(*named_shape("pro"), true), 1'598'837'347'742);
}

TEST(ModelShapes, TheTinyOneIsTheBuiltInModel) {
  const std::string path = str_cat(FATHOM_SOURCE_DIR, "/configs/tiny/model.json");
  EXPECT_EQ(model_config_to_json(tiny_shape(), "bfloat16"),
            model_config_to_json(parse_model_config(read_json_file(path), path), "bfloat16"));
  EXPECT_FALSE(named_shape("gpt-2"));
}

PlanRequest tiny_request(dist::MeshShape mesh) {
  PlanRequest r;
  r.model_name = "tiny";
  r.config = tiny_shape();
  r.layout.mesh = mesh;
  r.machine = *find_machine("CPU");
  r.batch = {.samples = 8, .sequence_tokens = 32, .response_tokens = 16};
  return r;
}

TEST(Plan, OneRankHoldsTheModelOnceAndSendsNothing) {
  const PlanRequest r = tiny_request({});
  const Plan plan = make_plan(r);
  ASSERT_EQ(plan.ranks.size(), 1u);
  const RankMemory& m = plan.ranks[0];
  int64_t trained = 0, table = 0, all = 0;
  for_each_parameter(make_weights(r.config), [&](const Parameter& p) {
    const bool moves =
        p.has_gradient && !p.name.starts_with("mtp.") && !p.name.ends_with(".ffn.gate.weight");
    const int64_t n = p.kind == ParameterKind::kMatrix ? p.panels.size() : p.numel();
    all += n;
    trained += moves ? n : 0;
    table += p.kind == ParameterKind::kTable ? n : 0;
  });
  EXPECT_EQ(m.weights, 4 * all);
  EXPECT_EQ(m.gradients, 4 * trained);
  EXPECT_EQ(m.optimizer, 8 * trained);
  EXPECT_GT(table, 0);
  for (int64_t bytes : plan.traffic[0]) EXPECT_EQ(bytes, 0);
  EXPECT_TRUE(plan.fits);
  EXPECT_TRUE(plan.advice.empty());
}

TEST(Plan, ReplicasShareTheOptimizerStateAndNothingElse) {
  const Plan one = make_plan(tiny_request({})), two = make_plan(tiny_request({.dp = 2}));
  ASSERT_EQ(two.ranks.size(), 2u);
  EXPECT_EQ(two.ranks[0].weights, one.ranks[0].weights);
  EXPECT_EQ(two.ranks[0].gradients, one.ranks[0].gradients);
  EXPECT_EQ(two.ranks[0].optimizer + two.ranks[1].optimizer, one.ranks[0].optimizer);
  EXPECT_GT(two.traffic[0][static_cast<size_t>(Traffic::kGradient)], 0);
}

TEST(Plan, ModelParallelRanksHoldTheModelTogether) {
  for (const dist::MeshShape& mesh :
       {dist::MeshShape{.tp = 2}, dist::MeshShape{.tp = 8, .ep = 8}, dist::MeshShape{.pp = 3},
        dist::MeshShape{.tp = 2, .cp = 2, .pp = 2, .ep = 2}}) {
    const PlanRequest r = tiny_request(mesh);
    const Plan plan = make_plan(r);
    int64_t sum = 0;
    for (const RankMemory& m : plan.ranks) sum += m.num_parameters;
    const int64_t whole = make_plan(tiny_request({})).ranks[0].num_parameters;
    EXPECT_LT(plan.fullest().num_parameters, whole) << mesh.text();
    EXPECT_GE(sum, whole) << mesh.text();
  }
}

TEST(Plan, KeepingActivationsTakesMoreThanRecomputing) {
  PlanRequest r = h200_8x8();
  const Plan recomputed = make_plan(r);
  r.recompute = false;
  const Plan kept = make_plan(r);
  EXPECT_GT(kept.fullest().saved_activations, 4 * recomputed.fullest().saved_activations);
  EXPECT_LT(kept.compute_seconds, recomputed.compute_seconds);
}

TEST(Plan, RecipesFitTheirMachines) {
  for (const PlanRequest& r : {h200_8x8(), gb300_tp8pp4(), gb300_tp2pp8cp2(), pro_h200_32x8()}) {
    const Plan plan = make_plan(r);
    EXPECT_TRUE(plan.fits) << plan_table(r, plan);
    EXPECT_TRUE(plan.whole_products.empty()) << plan_table(r, plan);
    // Routed experts are nearly all of the model, and every rank has an equal part of them.
    int64_t sum = 0;
    for (const RankMemory& m : plan.ranks) sum += m.num_parameters;
    EXPECT_GT(sum, count_elements(r.config, true));
    EXPECT_EQ(plan_json(r, plan)["fits"], true);
  }
}

TEST(Plan, WhatDoesNotFitComesWithAdviceThatHolds) {
  PlanRequest r = h200_8x8();
  r.machine = *find_machine("H100");
  r.optimizer_on_host = false;
  const Plan plan = make_plan(r);
  ASSERT_FALSE(plan.fits);
  ASSERT_FALSE(plan.advice.empty());
  const auto offload = std::find_if(plan.advice.begin(), plan.advice.end(), [](const Advice& a) {
    return a.change == "--optimizer-cpu-offload";
  });
  ASSERT_NE(offload, plan.advice.end());
  r.optimizer_on_host = true;
  const Plan followed = make_plan(r);
  EXPECT_EQ(offload->fits, followed.fits);
  EXPECT_EQ(offload->peak_bytes, followed.fullest().peak_bytes());
  EXPECT_NE(plan_table(r, plan).find("does not fit: rank"), std::string::npos);
}

TEST(Plan, ProductsThatAreComputedWholeAreNamed) {
  PlanRequest r = tiny_request({.tp = 4});
  r.layout.precision = Precision::kParityFp8;
  const Plan plan = make_plan(r);
  EXPECT_NE(plan_table(r, plan).find("computed whole on every rank: attn.wo_b: tp 4"),
            std::string::npos)
      << plan_table(r, plan);
  r.layout.mesh.tp = 3;
  EXPECT_THROW(make_plan(r), ConfigError);
}

TEST(Plan, ADealerDealsAsTheOptimizerDoes) {
  Dealer dealer(3);
  std::vector<int> owners;
  for (int64_t n : {100, 7, 15, 4, 4, 90}) owners.push_back(dealer.next(n));
  EXPECT_EQ(owners, (std::vector<int>{0, 1, 2, 1, 1, 1}));
}

}  // namespace
}  // namespace fathom
