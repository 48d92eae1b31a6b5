#include "fathom/checkpoint/names.h"

#include <gtest/gtest.h>

#include <set>

#include "fathom/model/weights.h"

namespace fathom {
namespace {

const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

// {official, SGLang style, transformers in memory}
const std::vector<std::array<std::string, 3>> kExamples = {
    {"embed.weight", "model.embed_tokens.weight", "model.embed_tokens.weight"},
    {"head.weight", "lm_head.weight", "lm_head.weight"},
    {"norm.weight", "model.norm.weight", "model.norm.weight"},
    {"hc_head_fn", "model.hc_head_fn", "model.hc_head.hc_fn"},
    {"hc_head_scale", "model.hc_head_scale", "model.hc_head.hc_scale"},
    {"layers.2.attn_norm.weight", "model.layers.2.input_layernorm.weight",
     "model.layers.2.input_layernorm.weight"},
    {"layers.2.ffn_norm.weight", "model.layers.2.post_attention_layernorm.weight",
     "model.layers.2.post_attention_layernorm.weight"},
    {"layers.2.hc_attn_scale", "model.layers.2.hc_attn_scale", "model.layers.2.attn_hc.scale"},
    {"layers.2.hc_ffn_base", "model.layers.2.hc_ffn_base", "model.layers.2.ffn_hc.base"},
    {"layers.2.attn.wq_a.weight", "model.layers.2.self_attn.wq_a.weight",
     "model.layers.2.self_attn.q_a_proj.weight"},
    {"layers.2.attn.q_norm.weight", "model.layers.2.self_attn.q_norm.weight",
     "model.layers.2.self_attn.q_a_norm.weight"},
    {"layers.2.attn.wkv.weight", "model.layers.2.self_attn.wkv.weight",
     "model.layers.2.self_attn.kv_proj.weight"},
    {"layers.2.attn.kv_norm.weight", "model.layers.2.self_attn.kv_norm.weight",
     "model.layers.2.self_attn.kv_norm.weight"},
    {"layers.2.attn.attn_sink", "model.layers.2.self_attn.attn_sink",
     "model.layers.2.self_attn.sinks"},
    {"layers.2.attn.compressor.ape", "model.layers.2.self_attn.compressor.ape",
     "model.layers.2.self_attn.compressor.position_bias"},
    {"layers.2.attn.compressor.norm.weight", "model.layers.2.self_attn.compressor.norm.weight",
     "model.layers.2.self_attn.compressor.kv_norm.weight"},
    {"layers.2.attn.indexer.wq_b.weight", "model.layers.2.self_attn.indexer.wq_b.weight",
     "model.layers.2.self_attn.compressor.indexer.q_b_proj.weight"},
    {"layers.2.attn.indexer.weights_proj.weight",
     "model.layers.2.self_attn.indexer.weights_proj.weight",
     "model.layers.2.self_attn.compressor.indexer.scorer.weights_proj.weight"},
    {"layers.2.attn.indexer.compressor.wgate.weight",
     "model.layers.2.self_attn.indexer.compressor.wgate.weight",
     "model.layers.2.self_attn.compressor.indexer.gate_proj.weight"},
    {"layers.2.attn.indexer.compressor.ape", "model.layers.2.self_attn.indexer.compressor.ape",
     "model.layers.2.self_attn.compressor.indexer.position_bias"},
    {"layers.2.ffn.gate.weight", "model.layers.2.mlp.gate.weight",
     "model.layers.2.mlp.gate.weight"},
    {"layers.2.ffn.gate.bias", "model.layers.2.mlp.gate.e_score_correction_bias",
     "model.layers.2.mlp.gate.e_score_correction_bias"},
    {"layers.2.ffn.gate.tid2eid", "model.layers.2.mlp.topk.tid2eid",
     "model.layers.2.mlp.gate.tid2eid"},
    {"layers.2.ffn.shared_experts.w3.weight", "model.layers.2.mlp.shared_experts.up_proj.weight",
     "model.layers.2.mlp.shared_experts.up_proj.weight"},
    {"mtp.0.attn.wq_a.weight", "model.layers.4.self_attn.wq_a.weight", "mtp.0.attn.wq_a.weight"},
    {"mtp.0.norm.weight", "model.layers.4.shared_head.norm.weight", "mtp.0.norm.weight"},
    {"mtp.1.e_proj.weight", "model.layers.5.e_proj.weight", "mtp.1.e_proj.weight"},
    {"mtp.0.hc_head_fn", "model.layers.4.hc_head_fn", "mtp.0.hc_head_fn"},
};

TEST(NamesTest, ExamplesInEveryDialect) {
  for (const auto& [official, sglang, transformers] : kExamples) {
    EXPECT_EQ(stored_name(official, NameDialect::kOfficial, 4), official);
    EXPECT_EQ(stored_name(official, NameDialect::kSglang, 4), sglang);
    EXPECT_EQ(stored_name(official, NameDialect::kTransformers, 4), transformers);
    for (const std::string& name : {official, sglang, transformers}) {
      const TensorName parsed = parse_tensor_name(name, 4);
      EXPECT_EQ(parsed.official, official) << name;
      EXPECT_FALSE(parsed.is_scale) << name;
      EXPECT_FALSE(parsed.is_fused) << name;
    }
  }
  EXPECT_EQ(stored_name("layers.2.ffn.experts.3.w1.weight", NameDialect::kSglang, 4),
            "model.layers.2.mlp.experts.3.gate_proj.weight");
  EXPECT_EQ(parse_tensor_name("model.layers.2.mlp.experts.3.down_proj.weight", 4).official,
            "layers.2.ffn.experts.3.w2.weight");
}

TEST(NamesTest, EveryParameterOfAModelComesBack) {
  const Weights weights = make_weights(load_model_config(kGolden + "small/model"));
  for (const NameDialect dialect :
       {NameDialect::kOfficial, NameDialect::kSglang, NameDialect::kTransformers}) {
    std::set<std::string> seen;
    for_each_parameter(weights, [&](const Parameter& p) {
      if (dialect == NameDialect::kTransformers && parse_expert_name(p.name)) return;
      const std::string name = stored_name(p.name, dialect, 4);
      EXPECT_TRUE(seen.insert(name).second) << name;
      EXPECT_EQ(parse_tensor_name(name, 4).official, p.name) << name;
      if (p.kind != ParameterKind::kMatrix || !p.name.ends_with(".weight")) return;
      const TensorName scale = parse_tensor_name(stored_scale_name(p.name, dialect, 4), 4);
      EXPECT_TRUE(scale.is_scale) << name;
      EXPECT_EQ(scale.official, p.name);
    });
  }
}

TEST(NamesTest, ScaleSuffixes) {
  for (const char* name :
       {"layers.0.attn.wq_a.scale", "model.layers.0.self_attn.wq_a.weight_scale_inv",
        "model.layers.0.self_attn.q_a_proj.weight_scale_inv"}) {
    const TensorName parsed = parse_tensor_name(name, 4);
    EXPECT_TRUE(parsed.is_scale) << name;
    EXPECT_EQ(parsed.official, "layers.0.attn.wq_a.weight") << name;
  }
  EXPECT_EQ(stored_scale_name("layers.0.attn.wq_a.weight", NameDialect::kOfficial, 4),
            "layers.0.attn.wq_a.scale");
  EXPECT_EQ(stored_scale_name("layers.0.attn.wq_a.weight", NameDialect::kSglang, 4),
            "model.layers.0.self_attn.wq_a.weight_scale_inv");
  EXPECT_FALSE(parse_tensor_name("layers.0.hc_attn_scale", 4).is_scale);
  EXPECT_FALSE(parse_tensor_name("model.layers.0.attn_hc.scale", 4).is_scale);
}

TEST(NamesTest, TheMixtureThatTransformersSaves) {
  const std::vector<std::pair<std::string, std::string>> examples = {
      {"head.weight", "head.weight"},
      {"model.hc_head.hc_base", "hc_head_base"},
      {"model.layers.1.attn.norm.weight", "layers.1.attn.kv_norm.weight"},
      {"model.layers.1.attn.attn_sink", "layers.1.attn.attn_sink"},
      {"model.layers.1.attn.compressor.norm.weight", "layers.1.attn.compressor.norm.weight"},
      {"model.layers.1.attn.indexer.compressor.wkv.weight",
       "layers.1.attn.indexer.compressor.wkv.weight"},
      {"model.layers.1.attn.indexer.weights_proj.weight",
       "layers.1.attn.indexer.weights_proj.weight"},
      {"model.layers.1.ffn.experts.5.w3.weight", "layers.1.ffn.experts.5.w3.weight"},
      {"model.layers.0.ffn.gate.tid2eid", "layers.0.ffn.gate.tid2eid"},
  };
  for (const auto& [name, official] : examples) {
    EXPECT_EQ(parse_tensor_name(name, 4).official, official);
  }
}

TEST(NamesTest, FusedExperts) {
  const TensorName up = parse_tensor_name("model.layers.1.mlp.experts.gate_up_proj", 4);
  EXPECT_TRUE(up.is_fused);
  EXPECT_EQ(up.official, "layers.1.ffn.experts.gate_up");
  const TensorName down = parse_tensor_name("model.layers.1.mlp.experts.down_proj_scale_inv", 4);
  EXPECT_TRUE(down.is_fused);
  EXPECT_TRUE(down.is_scale);
  EXPECT_EQ(down.official, "layers.1.ffn.experts.down");
  EXPECT_EQ(fused_stored_name("layers.1.ffn.experts.3.w3.weight", NameDialect::kTransformers),
            "model.layers.1.mlp.experts.gate_up_proj");
  EXPECT_EQ(fused_stored_name("layers.1.ffn.experts.3.w2.weight", NameDialect::kTransformers),
            "model.layers.1.mlp.experts.down_proj");
  EXPECT_EQ(fused_stored_name("layers.1.ffn.experts.3.w2.weight", NameDialect::kSglang),
            std::nullopt);
  EXPECT_EQ(fused_stored_name("mtp.0.ffn.experts.3.w2.weight", NameDialect::kTransformers),
            std::nullopt);
  const auto expert = parse_expert_name("layers.1.ffn.experts.17.w2.weight");
  ASSERT_TRUE(expert.has_value());
  EXPECT_EQ(expert->moe, "layers.1.ffn");
  EXPECT_EQ(expert->expert, 17);
  EXPECT_EQ(expert->matrix, "w2");
  EXPECT_FALSE(parse_expert_name("layers.1.ffn.shared_experts.w2.weight").has_value());
}

TEST(NamesTest, MtpModulesInEitherSpelling) {
  EXPECT_EQ(parse_tensor_name("mtp.0.self_attn.wq_a.weight", 4).official, "mtp.0.attn.wq_a.weight");
  EXPECT_EQ(parse_tensor_name("model.layers.4.shared_head.norm.weight", 4).official,
            "mtp.0.norm.weight");
  EXPECT_EQ(mtp_module("mtp.2.norm.weight"), 2);
  EXPECT_EQ(mtp_module("layers.2.attn_norm.weight"), std::nullopt);
}

TEST(NamesTest, ForeignNamesMatchNothing) {
  for (const char* name : {"", ".", "model", "model.", "layers", "layers.x.attn.wkv.weight",
                           "layers.00.attn.wkv.weight", "layers.-1.attn.wkv.weight",
                           "layers.99999999999999999999.attn.wkv.weight", "a.b.c", "scale",
                           "layers.0.", "mtp.0.ffn", "model.layers.0.self_attn"}) {
    const TensorName parsed = parse_tensor_name(name, 4);
    EXPECT_NE(parsed.official, "layers.0.attn.wkv.weight") << name;
  }
}

TEST(NamesTest, DialectOfADirectory) {
  EXPECT_EQ(detect_name_dialect({"embed.weight", "layers.0.attn.wkv.weight"}),
            NameDialect::kOfficial);
  EXPECT_EQ(
      detect_name_dialect({"model.embed_tokens.weight", "model.layers.0.self_attn.wkv.weight"}),
      NameDialect::kSglang);
  EXPECT_EQ(
      detect_name_dialect({"model.embed_tokens.weight", "model.layers.0.self_attn.kv_proj.weight"}),
      NameDialect::kTransformers);
  EXPECT_EQ(name_dialect_from_string("sglang"), NameDialect::kSglang);
  EXPECT_EQ(name_dialect_from_string("huggingface"), std::nullopt);
  EXPECT_EQ(name_dialect_to_string(NameDialect::kTransformers), "transformers");
}

}  // namespace
}  // namespace fathom
