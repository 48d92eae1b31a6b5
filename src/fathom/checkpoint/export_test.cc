#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/export_hf.h"
#include "fathom/checkpoint/load.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

class ExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "fathom_export_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    make_directories(root_);
  }
  Weights load(const std::string& directory) { return load_weights(ctx_, directory); }
  static std::vector<float> row_major(const Parameter& p) {
    std::vector<float> values(static_cast<size_t>(p.numel()));
    if (p.kind == ParameterKind::kTable) {
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(p.master.i32()[i]);
    } else {
      p.get_row_major(values.data());
    }
    return values;
  }
  static std::map<std::string, std::vector<float>> values_of(const Weights& weights) {
    std::map<std::string, std::vector<float>> all;
    for_each_parameter(weights, [&](const Parameter& p) { all[p.name] = row_major(p); });
    return all;
  }
  std::string problem_of(const Weights& weights, const ExportOptions& options) {
    try {
      export_hf(ctx_, weights, options);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  }

  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, CpuIsa::kAvx2};
  std::string root_;
};

TEST_F(ExportTest, Bf16RoundsEachMasterOnceInEveryDialect) {
  const Weights weights = load(kGolden + "small/model");
  for (const NameDialect names :
       {NameDialect::kOfficial, NameDialect::kSglang, NameDialect::kTransformers}) {
    const std::string out = root_ + "/" + std::string(name_dialect_to_string(names));
    const ExportResult result = export_hf(ctx_, weights, {.output = out, .names = names});
    EXPECT_EQ(result.num_shards, 1);
    EXPECT_EQ(list_directory(out), (std::vector<std::string>{"config.json", kSingleFileName}));
    EXPECT_EQ(ModelTensors(out).dialect(), names);
    EXPECT_EQ(TensorShards(out).total_bytes(), result.num_bytes);
    const auto exported = values_of(load(out));
    for_each_parameter(weights, [&](const Parameter& p) {
      std::vector<float> expected = row_major(p);
      if (p.export_dtype == DType::kBF16) {
        for (float& x : expected) x = round_to_bf16(x);
      }
      EXPECT_EQ(exported.at(p.name), expected) << p.name;
    });
  }
  const TensorShards shards(root_ + "/official");
  EXPECT_EQ(shards.find("layers.0.ffn.gate.tid2eid")->entry->type->code, "I64");
  EXPECT_EQ(shards.find("layers.1.ffn.gate.bias")->entry->type->code, "F32");
  EXPECT_EQ(shards.find("layers.1.attn.compressor.ape")->entry->type->code, "F32");
  EXPECT_EQ(shards.find("layers.1.hc_attn_fn")->entry->type->code, "F32");
  EXPECT_EQ(shards.find("layers.1.attn.wkv.weight")->entry->type->code, "BF16");
}

TEST_F(ExportTest, Fp8HasTheTensorsOfThePublishedLayout) {
  const Weights weights = load(kGolden + "small/model");
  export_hf(ctx_, weights, {.output = root_ + "/fp8", .format = ExportFormat::kFp8});
  const TensorShards shards(root_ + "/fp8");
  int64_t num_fp8 = 0;
  for_each_parameter(weights, [&](const Parameter& p) {
    const StoredTensor* stored = shards.find(p.name);
    ASSERT_NE(stored, nullptr) << p.name;
    const bool is_fp8 = stored->entry->type->code == "F8_E4M3";
    EXPECT_EQ(is_fp8, is_exported_as_fp8(p.name)) << p.name;
    if (!is_fp8) return;
    ++num_fp8;
    const std::string scale = p.name.substr(0, p.name.size() - 6) + "scale";
    ASSERT_NE(shards.find(scale), nullptr) << scale;
    EXPECT_EQ(shards.find(scale)->entry->type->code, "F8_E8M0");
  });
  // Five layers (one of them MTP) of 6 + 1 experts and 4 projections, and two indexers.
  EXPECT_EQ(num_fp8, 5 * (7 * 3 + 4) + 2);
  EXPECT_FALSE(is_exported_as_fp8("layers.0.attn.wo_a.weight"));
  EXPECT_FALSE(is_exported_as_fp8("mtp.0.e_proj.weight"));
  EXPECT_FALSE(is_exported_as_fp8("layers.0.attn.compressor.wkv.weight"));
  EXPECT_FALSE(is_exported_as_fp8("layers.0.ffn.gate.weight"));

  const Json config = read_json_file(root_ + "/fp8/config.json");
  EXPECT_EQ(config["expert_dtype"], "fp8");
  EXPECT_EQ(config["quantization_config"]["scale_fmt"], "ue8m0");
  // Half a step of E4M3 (three bits of mantissa), or of its subnormals at the block's scale.
  const auto exported = values_of(load(root_ + "/fp8"));
  for_each_parameter(weights, [&](const Parameter& p) {
    if (!is_exported_as_fp8(p.name)) return;
    const std::vector<float> before = row_major(p);
    float amax = 0;
    for (const float x : before) amax = std::max(amax, std::abs(x));
    for (size_t i = 0; i < before.size(); ++i) {
      const float bound = std::max(std::abs(before[i]) / 16, amax * 0x1p-9f * 0x1p-8f);
      ASSERT_LE(std::abs(before[i] - exported.at(p.name)[i]), bound) << p.name << " " << i;
    }
  });
}

// Decoded FP8 is exact in BF16 and quantises to itself, so nothing moves after the first export.
TEST_F(ExportTest, WhatWasExportedStaysTheSame) {
  const Weights original = load(kGolden + "small_official/model");
  export_hf(ctx_, original, {.output = root_ + "/bf16"});
  EXPECT_EQ(values_of(load(root_ + "/bf16")), values_of(original));
  export_hf(ctx_, original, {.output = root_ + "/fp8", .format = ExportFormat::kFp8});
  const Weights once = load(root_ + "/fp8");
  export_hf(ctx_, once, {.output = root_ + "/again", .format = ExportFormat::kFp8});
  EXPECT_EQ(read_file(root_ + "/fp8/model.safetensors"),
            read_file(root_ + "/again/model.safetensors"));
}

TEST_F(ExportTest, ConfigSpeaksBothDialects) {
  export_hf(ctx_, load(kGolden + "small/model"), {.output = root_ + "/out"});
  const Json config = read_json_file(root_ + "/out/config.json");
  EXPECT_EQ(config["compress_ratios"], Json({0, 4, 16, 4, 0}));
  EXPECT_EQ(config["layer_types"][1], "compressed_sparse_attention");
  EXPECT_EQ(config["compress_rates"]["heavily_compressed_attention"], 16);
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  EXPECT_FALSE(config.contains("quantization_config"));
  export_hf(ctx_, load_weights(ctx_, kGolden + "small/model", {.with_mtp = false}),
            {.output = root_ + "/main"});
  EXPECT_EQ(load_model_config(root_ + "/main").num_nextn_predict_layers, 0);
}

TEST_F(ExportTest, ShardsStayBelowTheLimitAndTheIndexNamesThem) {
  const Weights weights = load(kGolden + "small/model");
  const ExportResult result =
      export_hf(ctx_, weights, {.output = root_ + "/out", .max_shard_bytes = 500'000});
  EXPECT_GT(result.num_shards, 5);
  const TensorShards shards(root_ + "/out");
  EXPECT_TRUE(shards.has_index());
  EXPECT_EQ(static_cast<int64_t>(shards.files().size()), result.num_shards);
  EXPECT_EQ(static_cast<int64_t>(shards.tensors().size()), result.num_tensors);
  for (const auto& file : shards.files()) {
    EXPECT_LE(file->tensors().back().end - file->tensors().front().begin, 500'000);
  }
  const Json index = read_json_file(root_ + "/out/" + kIndexName);
  EXPECT_EQ(index["metadata"]["total_size"], result.num_bytes);
  EXPECT_EQ(load(root_ + "/out").mtp.size(), 1u);
}

TEST_F(ExportTest, CompanionFilesGoAlong) {
  make_directories(root_ + "/source");
  write_file_atomic(root_ + "/source/tokenizer.json", "{}");
  write_file_atomic(root_ + "/source/generation_config.json", "{\"eos_token_id\": [2, 1]}");
  write_file_atomic(root_ + "/source/model.safetensors", "not to be copied");
  export_hf(ctx_, load(kGolden + "small/model"),
            {.output = root_ + "/out", .companions = root_ + "/source"});
  EXPECT_EQ(read_file(root_ + "/out/tokenizer.json"), "{}");
  EXPECT_EQ(load_model_config(root_ + "/out").eos_token_ids, (std::vector<int64_t>{2, 1}));
  EXPECT_NO_THROW(load(root_ + "/out"));
}

TEST_F(ExportTest, F32ScalesAreTheLargestMagnitudeOver448) {
  const Weights weights = load(kGolden + "small/model");
  export_hf(ctx_, weights,
            {.output = root_ + "/f32", .format = ExportFormat::kFp8, .scales = ExportScales::kF32});
  const TensorShards shards(root_ + "/f32");
  const StoredTensor& scale = *shards.find("layers.1.attn.wkv.scale");
  EXPECT_EQ(scale.entry->type->code, "F32");
  std::vector<float> values = row_major(weights.layers[1].attn.wkv);
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::abs(v));
  float first = 0;
  std::memcpy(&first, scale.data(), 4);
  EXPECT_EQ(first, amax / 448);  // the matrix is one block
  EXPECT_FALSE(
      read_json_file(root_ + "/f32/config.json")["quantization_config"].contains("scale_fmt"));
  EXPECT_NO_THROW(load(root_ + "/f32"));
}

TEST_F(ExportTest, SmallPiecesGiveTheSameFile) {
  const Weights weights = load(kGolden + "small/model");
  for (const ExportFormat format : {ExportFormat::kBf16, ExportFormat::kFp8}) {
    fs::remove_all(root_);
    export_hf(ctx_, weights, {.output = root_ + "/a", .format = format});
    export_hf(ctx_, weights, {.output = root_ + "/b", .format = format, .piece_bytes = 1000});
    EXPECT_EQ(read_file(root_ + "/a/model.safetensors"), read_file(root_ + "/b/model.safetensors"));
  }
}

// Every byte of every tensor of two directories, scales too; shards may be cut elsewhere.
void expect_same_tensors(const std::string& a, const std::string& b,
                         const std::string& but_for = "-") {
  const TensorShards left(a), right(b);
  for (const auto& [name, tensor] : left.tensors()) {
    if (name.starts_with(but_for)) continue;
    const StoredTensor* other = right.find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(other->entry->type->code, tensor.entry->type->code) << name;
    EXPECT_EQ(other->shape(), tensor.shape()) << name;
    ASSERT_EQ(other->entry->num_bytes(), tensor.entry->num_bytes()) << name;
    EXPECT_EQ(
        std::memcmp(tensor.data(), other->data(), static_cast<size_t>(tensor.entry->num_bytes())),
        0)
        << name;
  }
}

TEST_F(ExportTest, OverTheOriginalWhatHasNotChangedIsItsBytes) {
  for (const char* name : {"small", "small_official", "small_base", "small_sgl"}) {
    const std::string original = kGolden + name + "/model", out = root_ + "/" + name;
    Weights weights = load(original);
    const ExportResult same = export_hf_over(ctx_, *export_from_memory(weights), original,
                                             {.output = out, .piece_bytes = 10'000});
    EXPECT_EQ(same.num_copied, static_cast<int64_t>(TensorShards(original).tensors().size()));
    expect_same_tensors(original, out);
    expect_same_tensors(out, original);
    EXPECT_EQ(read_file(out + "/config.json"), read_file(original + "/config.json"));

    // One weight moves: it alone is written anew, in the format that is asked for.
    weights.layers[1].ffn.experts[2].w1.master.f32()[3] += 1;
    for (const ExportFormat format : {ExportFormat::kBf16, ExportFormat::kFp8}) {
      const std::string moved = out + (format == ExportFormat::kFp8 ? "_fp8" : "_bf16");
      const ExportResult result = export_hf_over(ctx_, *export_from_memory(weights), original,
                                                 {.output = moved, .format = format});
      EXPECT_LT(result.num_copied, same.num_copied);
      const std::string w1 =
          ModelTensors(original).source("layers.1.ffn.experts.2.w1.weight").tensor->weight.name();
      expect_same_tensors(original, moved, w1.substr(0, w1.size() - 6));
      EXPECT_EQ(TensorShards(moved).find(w1)->entry->type->code,
                format == ExportFormat::kFp8 ? "F8_E4M3" : "BF16");
      const Weights again = load(moved);
      const auto before = values_of(weights), after = values_of(again);
      EXPECT_NE(after.at("layers.1.ffn.experts.2.w1.weight"),
                values_of(load(original)).at("layers.1.ffn.experts.2.w1.weight"));
      for (const auto& [key, values] : before) {
        if (key == "layers.1.ffn.experts.2.w1.weight") continue;
        EXPECT_EQ(after.at(key), values) << key;
      }
    }
  }
}

TEST_F(ExportTest, TheOriginalOfAnotherModelIsRefused) {
  const Weights weights = load(kGolden + "small/model");
  try {
    export_hf_over(ctx_, *export_from_memory(weights), kGolden + "small_sgl/model",
                   {.output = root_ + "/out"});
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("has no tensor mtp.0"), std::string::npos) << e.what();
  }
  EXPECT_FALSE(file_exists(root_ + "/out/model.safetensors"));
}

TEST_F(ExportTest, OutputsThatAreTakenOrUnfinished) {
  const Weights weights = load(kGolden + "small/model");
  const ExportOptions options{.output = root_ + "/out", .max_shard_bytes = 500'000};
  export_hf(ctx_, weights, options);
  EXPECT_NE(problem_of(weights, options).find("holds a complete model"), std::string::npos);
  // Killed before the index: the next export starts over, with other shards this time.
  fs::remove(root_ + "/out/" + kIndexName);
  export_hf(ctx_, weights, {.output = root_ + "/out", .max_shard_bytes = 1'000'000});
  EXPECT_TRUE(TensorShards(root_ + "/out").warnings().empty());
  EXPECT_THROW(check_export_output(root_ + "/out"), UserError);
  fs::remove(root_ + "/out/" + kIndexName);
  EXPECT_NO_THROW(check_export_output(root_ + "/out"));
  const auto lock = FileLock::try_acquire(root_ + "/out/.export_hf.lock");
  EXPECT_NE(problem_of(weights, options).find("another process"), std::string::npos);
}

TEST_F(ExportTest, WeightsThatCannotBeExportedAreNamed) {
  Weights weights = load(kGolden + "small/model");
  weights.norm.master.f32()[5] = NAN;
  for (const ExportFormat format : {ExportFormat::kBf16, ExportFormat::kFp8}) {
    const std::string text = problem_of(weights, {.output = root_ + "/a", .format = format});
    EXPECT_NE(text.find("norm.weight: element 5"), std::string::npos) << text;
  }
  EXPECT_FALSE(file_exists(root_ + "/a/model.safetensors"));
  weights.norm.master.f32()[5] = 3.4e38f;  // finite, but BF16 rounds it to infinity
  EXPECT_NE(problem_of(weights, {.output = root_ + "/a"}).find("norm.weight"), std::string::npos);
  weights.norm.master.f32()[5] = 1.0f;
  weights.layers[1].attn.wkv.master.f32()[7] = INFINITY;
  const std::string text =
      problem_of(weights, {.output = root_ + "/a", .format = ExportFormat::kFp8});
  EXPECT_NE(text.find("layers.1.attn.wkv.weight"), std::string::npos) << text;
  EXPECT_THROW(export_hf(ctx_, weights,
                         {.output = root_ + "/a",
                          .format = ExportFormat::kFp8,
                          .names = NameDialect::kTransformers}),
               ConfigError);
}

}  // namespace
}  // namespace fathom
