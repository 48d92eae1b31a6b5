#include "fathom/checkpoint/layout.h"

#include <gtest/gtest.h>

#include "fathom/base/error.h"

namespace fathom {
namespace {

ModelConfig flash_like() {
  ModelConfig c;
  c.num_hidden_layers = 43;
  c.n_routed_experts = 256;
  c.num_attention_heads = 64;
  c.o_groups = 8;
  c.moe_intermediate_size = 2048;
  c.n_shared_experts = 1;
  return c;
}

TEST(LayoutTest, TheRecipesStagesHoldItsLayers) {
  ParallelLayout layout{.pipeline = 8, .expert = 4};
  layout.first_layers = 7;
  layout.last_layers = 6;
  EXPECT_EQ(layout_problem(layout, flash_like()), "");
  EXPECT_EQ(layout.num_ranks(), 32);
  const std::vector<int64_t> stages = stage_of_layers(layout, 43);
  std::vector<int64_t> counts(8, 0);
  for (const int64_t s : stages) ++counts[static_cast<size_t>(s)];
  EXPECT_EQ(counts, (std::vector<int64_t>{7, 5, 5, 5, 5, 5, 5, 6}));
  EXPECT_EQ(stage_of("embed.weight", stages), 0);
  EXPECT_EQ(stage_of("layers.7.attn_norm.weight", stages), 1);
  EXPECT_EQ(stage_of("head.weight", stages), 7);
  EXPECT_EQ(stage_of("mtp.0.norm.weight", stages), 7);
}

TEST(LayoutTest, WhatDoesNotFitIsSaid) {
  ParallelLayout layout{.pipeline = 8};
  EXPECT_NE(layout_problem(layout, flash_like()).find("43 layers cannot be shared by 8"),
            std::string::npos);
  layout = {.expert = 3};
  EXPECT_NE(layout_problem(layout, flash_like()).find("256 experts cannot be shared by 3"),
            std::string::npos);
  layout = {.tensor = 16};
  EXPECT_NE(layout_problem(layout, flash_like()).find("output groups"), std::string::npos);
}

TEST(LayoutTest, PaddedVocabularyDecidesWhereItIsCut) {
  const ParallelLayout layout{.tensor = 8};
  const auto parts = cut_tensor(layout, "embed.weight", {129280, 4096}, 1 << 30, 4 << 20);
  ASSERT_EQ(parts.size(), 8u);  // 130048 rows with padding, 16256 a rank
  EXPECT_EQ(parts[1].row_begin, 16256);
  EXPECT_EQ(parts[7].row_end, 129280);
  EXPECT_EQ(parts[7].shard, 7);
  ParallelLayout pro = layout;
  pro.vocab_multiple = 32;
  EXPECT_EQ(cut_tensor(pro, "embed.weight", {129280, 4096}, 1 << 30, 4 << 20)[1].row_begin, 16160);
}

TEST(LayoutTest, LargeTensorsAreCutForUpToEightRanks) {
  const ParallelLayout one, two{.tensor = 2};
  EXPECT_EQ(cut_tensor(one, "layers.0.attn.wo_b.weight", {4096, 8192}, 64 << 20, 4 << 20).size(),
            8u);
  const auto parts = cut_tensor(two, "layers.0.attn.wo_b.weight", {4096, 8192}, 64 << 20, 4 << 20);
  ASSERT_EQ(parts.size(), 8u);
  EXPECT_EQ(parts[3].shard, 0);
  EXPECT_EQ(parts[4].shard, 1);
  EXPECT_EQ(parts[4].col_begin, 4096);
  // Experts keep Megatron's boxes, one each.
  EXPECT_EQ(
      cut_tensor(one, "layers.0.ffn.experts.3.w1.weight", {2048, 4096}, 16 << 20, 4 << 20).size(),
      1u);
  EXPECT_EQ(cut_tensor(two, "layers.0.attn.attn_sink", {64}, 256, 4 << 20).size(), 2u);
  EXPECT_EQ(cut_tensor(two, "layers.0.attn.wq_a.weight", {1024, 4096}, 8 << 20, 4 << 20).size(),
            1u);
}

}  // namespace
}  // namespace fathom
