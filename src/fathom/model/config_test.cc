#include "fathom/model/config.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

Json hub_config() { return read_json_file(kGolden + "small/model/config.json"); }

std::string problem_of(const Json& json) {
  try {
    parse_model_config(json, "x/config.json");
  } catch (const UserError& e) {
    return e.what();
  }
  return "accepted";
}

void expect_problem(const Json& json, const std::string& part) {
  EXPECT_NE(problem_of(json).find(part), std::string::npos)
      << "expected \"" << part << "\" in: " << problem_of(json);
}

void expect_equal(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(model_config_to_json(a, "float32").dump(), model_config_to_json(b, "float32").dump());
}

// The original inference dialect of the small golden model.
Json original_config() {
  return Json::parse(R"({
    "vocab_size": 256, "dim": 128, "moe_inter_dim": 64, "n_layers": 4, "n_hash_layers": 1,
    "n_mtp_layers": 1, "n_heads": 8, "n_routed_experts": 6, "n_shared_experts": 1,
    "n_activated_experts": 2, "score_func": "sqrtsoftplus", "route_scale": 1.5,
    "swiglu_limit": 10.0, "q_lora_rank": 64, "head_dim": 64, "rope_head_dim": 32,
    "norm_eps": 1e-6, "o_groups": 4, "o_lora_rank": 32, "window_size": 16,
    "compress_ratios": [0, 4, 16, 4, 0], "compress_rope_theta": 160000, "original_seq_len": 64,
    "rope_theta": 10000, "rope_factor": 16, "beta_fast": 32, "beta_slow": 1, "index_n_heads": 4,
    "index_head_dim": 32, "index_topk": 4, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6,
    "dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4", "bos_token_id": 0,
    "eos_token_id": 1})");
}

// What transformers 5.23 writes for the small golden model.
Json transformers_config() {
  return Json::parse(R"({
    "architectures": ["DeepseekV4ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 0, "compress_rates": {"compressed_sparse_attention": 4,
      "heavily_compressed_attention": 16},
    "compress_rope_theta": 160000, "dtype": "float32", "eos_token_id": 1, "hc_eps": 1e-06,
    "hc_mult": 4, "hc_sinkhorn_iters": 20, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 128, "index_head_dim": 32, "index_n_heads": 4, "index_topk": 4,
    "layer_types": ["sliding_attention", "compressed_sparse_attention",
      "heavily_compressed_attention", "compressed_sparse_attention"],
    "max_position_embeddings": 1024, "mlp_bias": false,
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"], "model_type": "deepseek_v4",
    "moe_intermediate_size": 64, "n_routed_experts": 6, "n_shared_experts": 1,
    "norm_topk_prob": true, "num_attention_heads": 8, "num_experts_per_tok": 2,
    "num_hidden_layers": 4, "num_key_value_heads": 1, "num_nextn_predict_layers": 1,
    "o_groups": 4, "o_lora_rank": 32, "pad_token_id": null, "partial_rotary_factor": 0.5,
    "q_lora_rank": 64, "rms_norm_eps": 1e-06,
    "rope_parameters": {
      "compress": {"attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1, "factor": 16,
        "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5,
        "rope_theta": 160000, "rope_type": "yarn", "type": "yarn"},
      "main": {"partial_rotary_factor": 0.5, "rope_theta": 10000, "rope_type": "default"}},
    "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 16,
    "swiglu_limit": 10.0, "tie_word_embeddings": false, "topk_method": "noaux_tc",
    "vocab_size": 256})");
}

TEST(ModelConfigTest, HubDialect) {
  const ModelConfig c = load_model_config(kGolden + "small/model");
  EXPECT_EQ(c.hidden_size, 128);
  EXPECT_EQ(c.qk_rope_head_dim, 32);
  EXPECT_EQ(c.compress_ratios, (std::vector<int64_t>{0, 4, 16, 4, 0}));
  EXPECT_EQ(c.num_indexer_layers(), 2);
  EXPECT_EQ(c.num_hash_layers, 1);
  EXPECT_EQ(c.rope_theta, 10000.0);
  EXPECT_EQ(c.compress_rope_theta, 160000.0);
  EXPECT_EQ(c.rope_scaling.factor, 16.0);
  EXPECT_EQ(c.rope_scaling.original_max_position_embeddings, 64);
  EXPECT_EQ(c.max_position_embeddings, 1024);
  EXPECT_EQ(c.eos_token_ids, std::vector<int64_t>{1});
  EXPECT_EQ(load_model_config(kGolden + "release_shapes/model").compress_ratios,
            (std::vector<int64_t>{0, 4, 128}));
}

TEST(ModelConfigTest, ThreeDialectsGiveTheSameModel) {
  const ModelConfig hub = parse_model_config(hub_config(), "hub");
  expect_equal(parse_model_config(original_config(), "original"), hub);
  expect_equal(parse_model_config(transformers_config(), "transformers"), hub);
}

TEST(ModelConfigTest, WhatWeWriteReadsBackTheSame) {
  const ModelConfig c = parse_model_config(hub_config(), "hub");
  const Json written = model_config_to_json(c, "bfloat16");
  EXPECT_EQ(written["torch_dtype"], "bfloat16");
  EXPECT_EQ(written["layer_types"][2], "heavily_compressed_attention");
  EXPECT_EQ(written["compress_rates"]["heavily_compressed_attention"], 16);
  EXPECT_FALSE(written.contains("quantization_config"));
  expect_equal(parse_model_config(written, "written"), c);
  Json no_yarn = hub_config();
  no_yarn["rope_scaling"] = nullptr;
  const ModelConfig plain = parse_model_config(no_yarn, "hub");
  EXPECT_EQ(plain.rope_scaling.factor, 1.0);
  expect_equal(parse_model_config(model_config_to_json(plain, "float32"), "written"), plain);
}

TEST(ModelConfigTest, SpellingsThatAreAccepted) {
  Json j = hub_config();
  j["model_type"] = "deepseek_ref";
  EXPECT_EQ(problem_of(j), "accepted");
  j = hub_config();  // rope_theta inside rope_scaling only
  j["rope_scaling"]["rope_theta"] = 10000;
  j.erase("rope_theta");
  EXPECT_EQ(parse_model_config(j, "x").rope_theta, 10000.0);
  j = hub_config();  // entries of MTP modules that the model does not have, and of none
  j["num_nextn_predict_layers"] = 0;
  EXPECT_EQ(parse_model_config(j, "x").compress_ratios.size(), 4u);
  j = hub_config();
  j["compress_ratios"] = {0, 4, 16, 4};
  EXPECT_EQ(parse_model_config(j, "x").compress_ratios, (std::vector<int64_t>{0, 4, 16, 4, 0}));
  j = transformers_config();
  j.erase("compress_rates");
  j["compress_rate_hca"] = 16;
  EXPECT_EQ(parse_model_config(j, "x").ratio(2), 16);
  j = hub_config();
  j["dspark_block_size"] = 5;
  EXPECT_EQ(parse_model_config(j, "x").num_nextn_predict_layers, 0);
  j = original_config();  // a length of 0 switches YaRN off, and then nothing says the longest
  j["original_seq_len"] = 0;
  expect_problem(j, "max_position_embeddings");
  j["max_seq_len"] = 4096;
  EXPECT_EQ(parse_model_config(j, "x").rope_scaling.factor, 1.0);
}

TEST(ModelConfigTest, AModelCutToFewerLayersKeepsItsNumberOfHashLayers) {
  Json j = hub_config();
  j["num_hash_layers"] = 50;
  EXPECT_EQ(parse_model_config(j, "x").num_hash_layers,
            parse_model_config(j, "x").num_hidden_layers);
}

TEST(ModelConfigTest, EveryProblemIsNamedAtOnce) {
  Json j = hub_config();
  j.erase("hidden_size");
  j["vocab_size"] = -5;
  j["hidden_act"] = "gelu";
  j["o_groups"] = 3;
  j["compress_ratios"] = {0, 4, 1, 4, 0};
  const std::string text = problem_of(j);
  EXPECT_NE(text.find("x/config.json"), std::string::npos);
  EXPECT_NE(text.find("5 problems"), std::string::npos) << text;
  for (const char* part : {"hidden_size is missing", "vocab_size must be", "got -5", "gelu",
                           "o_groups must divide", "compress_ratios[2]"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

TEST(ModelConfigTest, EveryFieldThatAModelNeedsIsRequired) {
  for (const char* field : {"model_type",        "vocab_size",
                            "hidden_size",       "moe_intermediate_size",
                            "num_hidden_layers", "num_attention_heads",
                            "head_dim",          "qk_rope_head_dim",
                            "q_lora_rank",       "o_groups",
                            "o_lora_rank",       "num_experts_per_tok",
                            "n_routed_experts",  "routed_scaling_factor",
                            "num_hash_layers",   "sliding_window",
                            "compress_ratios",   "compress_rope_theta",
                            "rope_theta",        "max_position_embeddings",
                            "index_n_heads",     "index_head_dim",
                            "index_topk",        "hc_mult",
                            "hc_sinkhorn_iters", "hc_eps",
                            "rms_norm_eps",      "swiglu_limit"}) {
    Json j = hub_config();
    j.erase(field);
    expect_problem(j, field);
    expect_problem(j, "1 problem:");
  }
}

TEST(ModelConfigTest, WrongValuesAreRefusedWithWhatWasGot) {
  const std::vector<std::tuple<const char*, Json, const char*>> cases = {
      {"model_type", "llama", "\"llama\""},
      {"scoring_func", "softmax", "\"softmax\""},
      {"topk_method", "greedy", "\"greedy\""},
      {"hidden_act", "gelu", "\"gelu\""},
      {"tie_word_embeddings", true, "true"},
      {"norm_topk_prob", false, "false"},
      {"n_shared_experts", 2, "got 2"},
      {"num_key_value_heads", 8, "got 8"},
      {"hidden_size", 0, "got 0"},
      {"hidden_size", "128", "got \"128\""},
      {"hidden_size", 128.5, "128.5"},
      {"hidden_size", 18446744073709551615ull, "18446744073709551615"},
      {"qk_rope_head_dim", 33, "got 33"},
      {"qk_rope_head_dim", 66, "got 66"},
      {"num_experts_per_tok", 7, "got 7"},
      {"num_hash_layers", -1, "got -1"},
      {"swiglu_limit", -1, "got -1"},
      {"rms_norm_eps", 0, "got 0"},
      {"compress_ratios", {0, 4, 16}, "got 3"},
      {"compress_ratios", {0, 4, 16, 4, 4}, "MTP module 0"},
      {"compress_ratios", {0, 4, -16, 4, 0}, "got -16"},
      {"compress_ratios", "none", "got \"none\""},
      {"index_head_dim", 16, "got 16"},
      {"eos_token_id", 256, "got 256"},
      {"eos_token_id", "end", "got \"end\""},
      {"rope_scaling", "yarn", "got \"yarn\""},
  };
  for (const auto& [field, value, part] : cases) {
    Json j = hub_config();
    j[field] = value;
    expect_problem(j, field);
    expect_problem(j, part);
  }
  Json j = hub_config();
  j["rope_scaling"]["type"] = "linear";
  expect_problem(j, "\"linear\"");
  j = hub_config();
  j["rope_scaling"].erase("factor");
  expect_problem(j, "rope_scaling: factor is missing");
  j = hub_config();
  j["rope_scaling"]["attention_factor"] = 1.277;
  expect_problem(j, "1.277");
  j = hub_config();
  j["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention",
                      "sliding_attention"};
  expect_problem(j, "full_attention");
  j = transformers_config();
  j["mlp_layer_types"] = {"moe", "hash_moe", "moe", "moe"};
  expect_problem(j, "mlp_layer_types");
  EXPECT_THROW(parse_model_config(Json::array(), "x"), UserError);
}

TEST(ModelConfigTest, ContradictionsAreNamed) {
  Json j = hub_config();
  j["dim"] = 256;
  expect_problem(j, "hidden_size (128) and dim (256)");
  j = hub_config();
  j["layer_types"] = transformers_config()["layer_types"];
  expect_problem(j, "compress_ratios[2] (16) and layer_types[2] (ratio 128)");
  j = transformers_config();
  j["rope_theta"] = 500000;
  expect_problem(j, "rope_parameters.main.rope_theta");
  j = transformers_config();
  j["num_hash_layers"] = 3;
  expect_problem(j, "num_hash_layers (3)");
}

TEST(ModelConfigTest, PreviewReleaseIsRefused) {
  Json j = hub_config();
  j["num_hidden_layers"] = 43;
  j["hidden_size"] = 4096;
  j["num_nextn_predict_layers"] = 0;
  j["compress_ratios"] = std::vector<int64_t>(43, 0);
  EXPECT_EQ(problem_of(j), "accepted");
  j["rope_scaling"]["factor"] = 4;
  expect_problem(j, "preview");
}

TEST(ModelConfigTest, EndTokensComeFromTheGenerationConfigFirst) {
  const std::string dir = ::testing::TempDir() + "fathom_model_config";
  std::filesystem::remove_all(dir);
  make_directories(dir);
  write_file_atomic(dir + "/config.json", hub_config().dump());
  EXPECT_EQ(load_model_config(dir).eos_token_ids, std::vector<int64_t>{1});
  write_file_atomic(dir + "/generation_config.json", R"({"eos_token_id": [3, 4]})");
  EXPECT_EQ(load_model_config(dir).eos_token_ids, (std::vector<int64_t>{3, 4}));
  write_file_atomic(dir + "/generation_config.json", R"({"temperature": 1.0})");
  EXPECT_EQ(load_model_config(dir).eos_token_ids, std::vector<int64_t>{1});
  write_file_atomic(dir + "/generation_config.json", R"({"eos_token_id": 900})");
  EXPECT_THROW(load_model_config(dir), UserError);
  write_file_atomic(dir + "/config.json", "{\"vocab_size\": 1,}");
  EXPECT_THROW(load_model_config(dir), UserError);
  EXPECT_THROW(load_model_config(dir + "/nowhere"), UserError);
}

}  // namespace
}  // namespace fathom
