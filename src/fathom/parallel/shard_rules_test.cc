#include "fathom/parallel/shard_rules.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/model/weights.h"

namespace fathom {
namespace {

ModelConfig tiny() {
  const std::string path = str_cat(FATHOM_SOURCE_DIR, "/configs/tiny/model.json");
  return parse_model_config(read_json_file(path), path);
}

/// The tiny model with Flash's widths, so that every product can be sharded in every mode.
ModelConfig wide() {
  ModelConfig c = tiny();
  c.vocab_size = 129280;
  c.hidden_size = 4096;
  c.num_hidden_layers = 8;
  c.compress_ratios = {0, 0, 4, 128, 4, 128, 4, 128, 0};
  c.num_attention_heads = 64;
  c.head_dim = 512;
  c.q_lora_rank = 1024;
  c.o_lora_rank = 1024;
  c.moe_intermediate_size = 2048;
  c.n_routed_experts = 16;
  return c;
}

ShardLayout layout(int tp, int cp, int dp, int pp, int ep = 1, int etp = 1) {
  return {.mesh = {.tp = tp, .cp = cp, .dp = dp, .pp = pp, .ep = ep, .etp = etp}};
}

/// Names the first element that the replicas 0 hold not once; empty when they tile the parameter.
std::string tiling_fault(const ModelConfig& config, const ShardLayout& l, const Parameter& p) {
  std::map<int64_t, int64_t> ranges;  // begin -> end on the axis
  int axis = -2;
  std::map<std::pair<int64_t, int64_t>, std::vector<int>> replicas;  // of one range
  int wanted_replicas = 0;
  for (int rank = 0; rank < l.mesh.size(); ++rank) {
    const Shard s = shard_of(config, l, rank, p.name, p.shape);
    if (!s.held || s.is_copy) continue;
    wanted_replicas = s.num_replicas;
    replicas[{s.begin, s.end}].push_back(s.replica);
    if (s.replica != 0) continue;
    if (axis != -2 && axis != s.axis) return p.name + " is cut along two axes";
    axis = s.axis;
    if (s.end > s.begin && !ranges.emplace(s.begin, s.end).second) {
      return str_cat(p.name, " row ", s.begin, " twice");
    }
  }
  int64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != at) return str_cat(p.name, " between ", at, " and ", begin);
    at = end;
  }
  const size_t along = axis < 0 ? 0 : static_cast<size_t>(axis);
  if (at != p.shape[along]) return str_cat(p.name, " ends at ", at);
  for (auto& [range, got] : replicas) {
    if (range.first == range.second) continue;  // empty parts of a small vocabulary
    std::sort(got.begin(), got.end());
    for (size_t i = 0; i < got.size(); ++i) {
      if (got[i] != static_cast<int>(i)) return str_cat(p.name, " replica ", i, " missing");
    }
    if (static_cast<int>(got.size()) != wanted_replicas) return p.name + " num_replicas";
  }
  return "";
}

TEST(ShardRules, TheShardsOfReplicaZeroTileEveryParameter) {
  std::vector<ShardLayout> layouts = {
      layout(1, 1, 1, 1),       layout(2, 1, 1, 1),       layout(4, 1, 1, 1),
      layout(8, 1, 1, 1, 8),    layout(2, 2, 2, 1, 4, 2), layout(2, 2, 1, 2, 2),
      layout(1, 2, 3, 2, 1),    layout(8, 1, 2, 2, 4, 4), layout(1, 1, 8, 1, 8),
      layout(4, 1, 2, 3, 2, 2),
  };
  for (const ModelConfig& config : {tiny(), wide()}) {
    const Weights weights = make_weights(config);
    for (Precision precision : {Precision::kFp32, Precision::kParityFp8}) {
      for (ShardLayout l : layouts) {
        l.precision = precision;
        check_layout(config, l);
        for_each_parameter(weights, [&](const Parameter& p) {
          EXPECT_EQ(tiling_fault(config, l, p), "") << l.mesh.text();
        });
      }
    }
  }
}

TEST(ShardRules, EveryKindOfParameterIsCutWhereTheModelSays) {
  const ModelConfig c = wide();
  const ShardLayout l = layout(8, 1, 1, 1, 8);
  const std::string layer = "layers.2.";
  EXPECT_EQ(split_of(c, l, layer + "attn.wq_b.weight"), Split::kRowsTp);
  EXPECT_EQ(split_of(c, l, layer + "attn.attn_sink"), Split::kRowsTp);
  EXPECT_EQ(split_of(c, l, layer + "attn.wo_a.weight"), Split::kRowsTp);
  EXPECT_EQ(split_of(c, l, layer + "attn.wo_b.weight"), Split::kColumnsTp);
  EXPECT_EQ(split_of(c, l, layer + "ffn.shared_experts.w1.weight"), Split::kRowsTp);
  EXPECT_EQ(split_of(c, l, layer + "ffn.shared_experts.w2.weight"), Split::kColumnsTp);
  EXPECT_EQ(split_of(c, l, layer + "ffn.experts.3.w2.weight"), Split::kExpert);
  EXPECT_EQ(split_of(c, l, "embed.weight"), Split::kVocabularyTp);
  EXPECT_EQ(split_of(c, l, "head.weight"), Split::kVocabularyTp);
  EXPECT_EQ(split_of(c, l, "mtp.0.attn.wq_b.weight"), Split::kRowsTp);
  for (const char* whole :
       {"layers.2.attn.wq_a.weight", "layers.2.attn.wkv.weight",
        "layers.2.attn.indexer.wq_b.weight", "layers.2.attn.compressor.ape", "layers.2.hc_attn_fn",
        "layers.2.ffn.gate.weight", "layers.0.ffn.gate.tid2eid", "norm.weight", "hc_head_fn",
        "mtp.0.e_proj.weight"}) {
    EXPECT_EQ(split_of(c, l, whole), Split::kWhole) << whole;
  }
  const Shard s = shard_of(c, l, 3, layer + "attn.wo_b.weight", {4096, 8192});
  EXPECT_EQ(s.axis, 1);
  EXPECT_EQ(s.begin, 3072);
  EXPECT_EQ(s.shape({4096, 8192}), (std::vector<int64_t>{4096, 1024}));
  EXPECT_EQ(s.numel({4096, 8192}), 4096 * 1024);
  const Shard expert = shard_of(c, l, 3, layer + "ffn.experts.7.w2.weight", {4096, 2048});
  EXPECT_TRUE(expert.held && expert.whole());
  EXPECT_FALSE(shard_of(c, l, 2, layer + "ffn.experts.7.w2.weight", {4096, 2048}).held);
  EXPECT_EQ(shard_of(c, l, 2, layer + "ffn.experts.7.w2.weight", {4096, 2048}).numel({4096, 2048}),
            0);
  const Shard rows = shard_of(c, l, 1, "head.weight", {129280, 4096});
  EXPECT_EQ(rows.begin, 5 * 3232);
  EXPECT_EQ(rows.end, 10 * 3232);
}

TEST(ShardRules, WhatWouldChangeBitsIsHeldWhole) {
  const ModelConfig c = tiny();
  ShardLayout l = layout(4, 1, 1, 1);
  EXPECT_TRUE(whole_products(c, layout(1, 1, 1, 1)).empty());
  EXPECT_EQ(whole_products(c, l), std::vector<std::string>{});  // parts of 16: all divide
  l.precision = Precision::kParityFp8;  // wo_b has K = 128, w2 K = 64: one part of 128
  const std::vector<std::string> fp8 = whole_products(c, l);
  EXPECT_EQ(fp8, (std::vector<std::string>{
                     "attn.wo_b: tp 4 does not divide its 1 part of 128 columns",
                     "shared_experts.w1, w2, w3: tp 4 does not divide its 1 part of 64 columns"}));
  EXPECT_EQ(split_of(c, l, "layers.0.attn.wo_b.weight"), Split::kWhole);
  EXPECT_EQ(split_of(c, l, "layers.0.ffn.shared_experts.w1.weight"), Split::kWhole);
  EXPECT_EQ(split_of(c, l, "layers.0.attn.wq_b.weight"), Split::kRowsTp);
  l.mesh.tp = 8;  // 64 rows of wq_b a rank would cut its FP8 blocks
  EXPECT_EQ(split_of(c, l, "layers.0.attn.wq_b.weight"), Split::kWhole);
  ModelConfig odd = c;
  odd.num_attention_heads = odd.o_groups = 3;
  l = layout(3, 1, 1, 1);
  EXPECT_EQ(split_of(odd, l, "embed.weight"), Split::kWhole);
  EXPECT_EQ(whole_products(odd, l).back(),
            "embed, head: tp 3 does not divide the 8 chunks of the vocabulary");
  EXPECT_TRUE(whole_products(wide(), layout(8, 1, 1, 1, 1, 8)).empty());
}

TEST(ShardRules, PipelineStagesHoldTheirLayersAndTheEnds) {
  const ModelConfig c = tiny();
  const ShardLayout l = layout(1, 1, 1, 3);
  const auto held = [&](int rank, const char* name) {
    return shard_of(c, l, rank, name, {4, 4}).held;
  };
  EXPECT_TRUE(held(0, "embed.weight"));
  EXPECT_FALSE(held(1, "embed.weight"));
  EXPECT_TRUE(shard_of(c, l, 2, "embed.weight", {64, 128}).is_copy);
  EXPECT_FALSE(shard_of(c, l, 0, "embed.weight", {64, 128}).is_copy);
  EXPECT_TRUE(held(1, "layers.1.attn_norm.weight"));
  EXPECT_FALSE(held(2, "layers.1.attn_norm.weight"));
  for (const char* name : {"norm.weight", "head.weight", "hc_head_fn", "mtp.0.e_proj.weight"}) {
    EXPECT_TRUE(held(2, name) && !held(0, name)) << name;
  }
  ShardLayout without = l;
  without.with_mtp = false;
  EXPECT_FALSE(shard_of(c, without, 2, "embed.weight", {64, 128}).held);
}

TEST(ShardRules, RefusesWhatDoesNotDivide) {
  const ModelConfig c = tiny();
  try {
    check_layout(c, layout(3, 1, 1, 1, 3));
    FAIL();
  } catch (const ConfigError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("3 does not divide the 8 attention heads"), std::string::npos) << text;
    EXPECT_NE(text.find("3 does not divide the 8 output groups"), std::string::npos) << text;
    EXPECT_NE(text.find("3 does not divide the 8 routed experts"), std::string::npos) << text;
  }
  EXPECT_THROW(check_layout(c, layout(1, 1, 1, 4)), ConfigError);
  EXPECT_THROW(split_of(c, layout(1, 1, 1, 1), "model.embed_tokens.weight"), InternalError);
}

TEST(Stages, RecipesAndRemainders) {
  ModelConfig c = tiny();
  const auto sizes = [&](int64_t layers, int pp, std::optional<int64_t> first,
                         std::optional<int64_t> last) {
    c.num_hidden_layers = layers;
    std::vector<int64_t> out;
    int64_t at = 0;
    for (const LayerRange& r : stage_layers(c, pp, first, last)) {
      EXPECT_EQ(r.begin, at);
      at = r.end;
      out.push_back(r.size());
    }
    EXPECT_EQ(at, layers);
    return out;
  };
  using Sizes = std::vector<int64_t>;
  EXPECT_EQ(sizes(43, 8, 4, 3), (Sizes{4, 6, 6, 6, 6, 6, 6, 3}));
  EXPECT_EQ(sizes(43, 4, 11, 10), (Sizes{11, 11, 11, 10}));
  EXPECT_EQ(sizes(61, 8, 7, 6), (Sizes{7, 8, 8, 8, 8, 8, 8, 6}));
  EXPECT_EQ(sizes(3, 2, std::nullopt, std::nullopt), (Sizes{2, 1}));
  EXPECT_EQ(sizes(7, 3, std::nullopt, 2), (Sizes{3, 2, 2}));
  EXPECT_EQ(sizes(3, 2, 1, 2), (Sizes{1, 2}));
  EXPECT_EQ(sizes(3, 1, std::nullopt, std::nullopt), (Sizes{3}));
  EXPECT_THROW(stage_layers(c, 1, 3), ConfigError);
  EXPECT_THROW(stage_layers(c, 2, 3), ConfigError);
  EXPECT_THROW(stage_layers(c, 2, 1, 1), ConfigError);
  EXPECT_THROW(stage_layers(c, 4), ConfigError);
  EXPECT_THROW(stage_layers(c, 2, 0), ConfigError);
}

}  // namespace
}  // namespace fathom
