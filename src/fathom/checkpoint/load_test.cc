#include "fathom/checkpoint/load.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/safetensors_writer.h"

namespace fathom {
namespace {

const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

class LoadTest : public ::testing::Test {
 protected:
  // A copy of a golden model that a test may damage.
  std::string copy_of(const std::string& golden) {
    const std::string dir = ::testing::TempDir() + "fathom_load_" +
                            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(dir);
    std::filesystem::copy(kGolden + golden + "/model", dir);
    return dir;
  }
  std::string problem_of(const std::string& directory, bool with_mtp = true) {
    try {
      load_weights(ctx_, directory, {.with_mtp = with_mtp});
    } catch (const UserError& e) {
      return e.what();
    }
    return "accepted";
  }
  void expect_problem(const std::string& directory, const std::vector<std::string>& parts) {
    const std::string text = problem_of(directory);
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "expected \"" << part << "\" in: " << text;
    }
  }
  // All tensors of a directory, to be written back as one file after a change.
  using Tensors = std::map<std::string, Tensor>;
  Tensors tensors_of(const std::string& directory) {
    Tensors all;
    const TensorShards shards(directory);
    for (const auto& [name, stored] : shards.tensors()) all[name] = stored.file->read(name);
    return all;
  }
  void write_back(const std::string& directory, const Tensors& tensors) {
    for (const std::string& name : list_directory(directory)) {
      if (name.find("safetensors") != std::string::npos) {
        std::filesystem::remove(join_path(directory, name));
      }
    }
    write_safetensors(join_path(directory, kSingleFileName), {tensors.begin(), tensors.end()});
  }
  void set_config(const std::string& directory, const std::string& field, const Json& value) {
    const std::string path = join_path(directory, "config.json");
    Json config = read_json_file(path);
    config[field] = value;
    write_file_atomic(path, config.dump());
  }

  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, CpuIsa::kAvx2};
};

std::vector<float> row_major(const Parameter& p) {
  std::vector<float> values(static_cast<size_t>(p.numel()));
  p.get_row_major(values.data());
  return values;
}

TEST_F(LoadTest, CopiesOfEmbeddingAndHeadInMtpModulesAreLeftAside) {
  const std::string dir = copy_of("small");
  Tensors tensors = tensors_of(dir);
  tensors["mtp.0.emb.tok_emb.weight"] = tensors.at("embed.weight");
  tensors["mtp.0.head.weight"] = tensors.at("head.weight");
  write_back(dir, tensors);
  EXPECT_EQ(problem_of(dir), "accepted");
  const ModelTensors model(dir);
  ASSERT_FALSE(model.notes().empty());
  EXPECT_NE(model.notes().back().find("2 copies"), std::string::npos) << model.notes().back();
}

// The decoded bytes of every tensor have the hash that an independent decoder gave.
TEST_F(LoadTest, QuantisedGoldensDecodeToTheStatedBytes) {
  for (const char* name : {"small_official", "small_base", "small_sgl"}) {
    const ModelTensors tensors(kGolden + name + "/model");
    const Json expected = read_json_file(kGolden + name + "/expected.json");
    EXPECT_EQ(tensors.sources().size(), expected.size());
    EXPECT_TRUE(tensors.notes().empty());
    for (const auto& item : expected.items()) {
      const ModelTensors::Source& source = tensors.source(item.key());
      const EncodedTensor& t = *source.tensor;
      EXPECT_EQ(Json(t.shape), item.value()["shape"]) << name << " " << item.key();
      std::string bytes(static_cast<size_t>(t.num_rows() * t.num_cols() * dtype_size(t.dtype)),
                        '\0');
      decode_rows(ctx_, t, 0, t.num_rows(), bytes.data());
      const std::string dtype = t.dtype == DType::kBF16  ? "bfloat16"
                                : t.dtype == DType::kF32 ? "float32"
                                                         : "int64";
      EXPECT_EQ(dtype, item.value()["dtype"]) << name << " " << item.key();
      EXPECT_EQ(sha256_hex(bytes), item.value()["sha256"]) << name << " " << item.key();
    }
  }
}

// Masters are those bytes widened, in the panel layout, whatever the number of threads.
TEST_F(LoadTest, MastersAreTheDecodedBytesWidened) {
  for (const char* name : {"small", "release_shapes", "small_official", "small_sgl"}) {
    const std::string dir = kGolden + name + "/model";
    const ModelTensors tensors(dir);
    const Weights weights = load_weights(ctx_, dir);
    ThreadPool one(1);
    const Weights again = load_weights({&one, CpuIsa::kAvx2}, dir);
    std::vector<const Parameter*> others;
    for_each_parameter(again, [&](const Parameter& p) { others.push_back(&p); });
    size_t i = 0;
    for_each_parameter(weights, [&](const Parameter& p) {
      const EncodedTensor& t = *tensors.source(p.name).tensor;
      if (p.kind == ParameterKind::kTable) {
        for (int64_t k = 0; k < p.numel(); ++k) {
          int64_t id;
          std::memcpy(&id, t.weight.data() + 8 * k, 8);
          EXPECT_EQ(p.master.i32()[k], id);
        }
      } else {
        std::vector<float> expected(static_cast<size_t>(p.numel()));
        decode_rows_f32(ctx_, t, 0, t.num_rows(), expected.data());
        EXPECT_EQ(row_major(p), expected) << p.name;
        EXPECT_EQ(p.compute.bytes(), p.master.bytes());
      }
      EXPECT_EQ(0, std::memcmp(p.master.bytes(), others[i++]->master.bytes(),
                               static_cast<size_t>(p.master.num_bytes())));
    });
    EXPECT_EQ(i, tensors.sources().size());
  }
}

TEST_F(LoadTest, MtpModulesCanBeLeftOut) {
  const std::string dir = kGolden + "small/model";
  EXPECT_EQ(load_weights(ctx_, dir).mtp.size(), 1u);
  const Weights without = load_weights(ctx_, dir, {.with_mtp = false});
  EXPECT_TRUE(without.mtp.empty());
  EXPECT_EQ(without.config.num_nextn_predict_layers, 0);
  EXPECT_EQ(without.config.compress_ratios.size(), 4u);
}

TEST_F(LoadTest, FilesWithoutTheMtpModulesOfTheirConfigAreAccepted) {
  const std::string dir = copy_of("small");
  Tensors tensors = tensors_of(dir);
  std::erase_if(tensors, [](const auto& t) { return t.first.starts_with("mtp."); });
  write_back(dir, tensors);
  EXPECT_TRUE(load_weights(ctx_, dir).mtp.empty());
}

TEST_F(LoadTest, DraftModulesThatTheConfigDoesNotNameAreLeftAside) {
  const std::string dir = copy_of("small");
  set_config(dir, "num_nextn_predict_layers", 0);
  const ModelTensors tensors(dir);
  ASSERT_EQ(tensors.notes().size(), 1u);
  EXPECT_NE(tensors.notes()[0].find("left aside"), std::string::npos);
  EXPECT_TRUE(load_weights(ctx_, tensors).mtp.empty());
}

TEST_F(LoadTest, OtherDialectsGiveTheSameWeights) {
  const Weights expected = load_weights(ctx_, kGolden + "small/model");
  std::map<std::string, std::vector<float>> values;
  for_each_parameter(expected, [&](const Parameter& p) {
    if (p.kind != ParameterKind::kTable) values[p.name] = row_major(p);
  });
  for (const NameDialect dialect : {NameDialect::kSglang, NameDialect::kTransformers}) {
    const std::string dir = copy_of("small");
    Tensors renamed;
    for (const auto& [name, tensor] : tensors_of(dir)) {
      const auto expert = parse_expert_name(name);
      if (dialect != NameDialect::kTransformers || !expert || mtp_module(name)) {
        renamed[stored_name(name, dialect, 4)] = tensor;
        continue;
      }
      // All experts in one tensor: [E, 2I, D] with w1 above w3, and [E, D, I].
      const bool down = expert->matrix == "w2";
      Tensor& fused = renamed["model." + expert->moe.substr(0, 9) + "mlp.experts." +
                              (down ? "down_proj" : "gate_up_proj")];
      const int64_t rows = tensor.dim(0) * (down ? 1 : 2);
      if (!fused.defined()) fused = Tensor::empty({6, rows, tensor.dim(1)});
      float* to =
          fused.f32() +
          (expert->expert * rows + (expert->matrix == "w3" ? tensor.dim(0) : 0)) * tensor.dim(1);
      std::memcpy(to, tensor.bytes(), static_cast<size_t>(tensor.num_bytes()));
    }
    write_back(dir, renamed);
    const Weights weights = load_weights(ctx_, dir);
    for_each_parameter(weights, [&](const Parameter& p) {
      if (p.kind == ParameterKind::kTable) return;
      EXPECT_EQ(row_major(p), values.at(p.name)) << p.name;
    });
    EXPECT_EQ(weights.mtp.size(), 1u);
  }
}

TEST_F(LoadTest, OtherNumberTypesAreAccepted) {
  const std::string dir = copy_of("small");
  Tensors tensors = tensors_of(dir);
  Tensor half = Tensor::empty({128}, DType::kF16), bf16 = Tensor::empty({4}, DType::kBF16);
  for (int i = 0; i < 128; ++i) half.u16()[i] = 0x3E00;  // 1.5
  for (int i = 0; i < 4; ++i) bf16.u16()[i] = 0xC040;    // -3
  tensors["norm.weight"] = half;
  tensors["hc_head_base"] = bf16;
  Tensor narrow = Tensor::empty({256, 2}, DType::kI32);
  for (int i = 0; i < 512; ++i) narrow.i32()[i] = i % 6;
  tensors["layers.0.ffn.gate.tid2eid"] = narrow;
  write_back(dir, tensors);
  const Weights weights = load_weights(ctx_, dir);
  EXPECT_EQ(weights.norm.master.f32()[127], 1.5f);
  EXPECT_EQ(weights.hc_head.base.master.f32()[3], -3.0f);
  EXPECT_EQ(weights.layers[0].ffn.tid2eid->master.i32()[511], 511 % 6);
}

TEST_F(LoadTest, EveryDifferenceIsListedWithTheCount) {
  const std::string dir = copy_of("small");
  Tensors tensors = tensors_of(dir);
  tensors.erase("norm.weight");
  tensors["layers.1.attn.wkv.weight"] = Tensor::zeros({65, 128});
  tensors["layers.1.attn.extra.weight"] = Tensor::zeros({1});
  tensors["model.embed_tokens.weight"] = Tensor::zeros({256, 128});
  tensors["layers.2.attn.wq_a.scale"] = Tensor::zeros({1, 1});
  write_back(dir, tensors);
  expect_problem(dir, {dir, "5 problems", "tensor norm.weight [128] is missing",
                       "layers.1.attn.wkv.weight (F32 [65, 128]) in model.safetensors must decode "
                       "to [64, 128]",
                       "layers.1.attn.extra.weight (F32 [1]) in model.safetensors is not expected",
                       "are the same parameter", "must not have a scale"});
  tensors.clear();
  tensors["embed.weight"] = Tensor::zeros({256, 128});
  write_back(dir, tensors);
  expect_problem(dir, {"tensor layers.0.hc_attn_fn [24, 512] is missing", "and 177 more"});
}

TEST_F(LoadTest, TruncatedShardIsNamed) {
  const std::string dir = copy_of("small_base");
  std::filesystem::resize_file(dir + "/model-00002-of-00003.safetensors", 400'000);
  expect_problem(dir, {"model-00002-of-00003.safetensors", "truncated"});
}

TEST_F(LoadTest, DamagedQuantisationIsNamed) {
  const std::string weight = "layers.1.attn.wq_b.weight", scale = "layers.1.attn.wq_b.scale";
  const std::string dir = copy_of("small_official");
  const Tensors good = tensors_of(dir);
  Tensors bad = good;
  bad.erase(scale);
  write_back(dir, bad);
  expect_problem(dir, {weight, "F8_E4M3", "the scale of this quantised tensor is missing"});

  bad = good;
  bad[scale] = good.at(scale).clone();
  bad[scale].bytes()[1] = 0xFF;
  write_back(dir, bad);
  expect_problem(dir, {scale, "scale 1 is NaN", "model.safetensors"});

  bad = good;
  bad[scale] = Tensor::zeros({4, 2}, DType::kF8E8M0);
  write_back(dir, bad);
  expect_problem(dir, {weight, "must have shape [4, 1], got", "[4, 2]"});

  bad = good;
  bad[scale] = Tensor::zeros({4, 1}, DType::kBF16);
  write_back(dir, bad);
  expect_problem(dir, {weight, "the scale of FP8 must be E8M0 or F32", "BF16"});

  bad = good;
  bad[weight] = Tensor::zeros({512, 64}, DType::kF64);
  write_back(dir, bad);
  expect_problem(dir, {weight, "F64", "this type cannot be decoded"});

  bad = good;  // an orphan
  bad["layers.1.attn.nothing.scale"] = Tensor::zeros({1, 1}, DType::kF8E8M0);
  write_back(dir, bad);
  expect_problem(dir, {"layers.1.attn.nothing.scale", "is a scale without a weight"});

  write_back(dir, good);
  EXPECT_EQ(problem_of(dir), "accepted");
  for (const auto& [field, value] : std::vector<std::pair<std::string, Json>>{
           {"quant_method", "awq"}, {"fmt", "e5m2"}, {"weight_block_size", {1, 32}}}) {
    Json quantisation = read_json_file(kGolden + "small_official/model/config.json");
    quantisation["quantization_config"][field] = value;
    set_config(dir, "quantization_config", quantisation["quantization_config"]);
    expect_problem(dir, {"config.json", "unknown quantisation", field, value.dump()});
  }
}

TEST_F(LoadTest, StaleScaleOfWoAIsIgnored) {
  const std::string dir = copy_of("small_sgl");
  Tensors tensors = tensors_of(dir);
  tensors["model.layers.0.self_attn.wo_a.weight_scale_inv"] = Tensor::zeros({1, 1});
  write_back(dir, tensors);
  EXPECT_EQ(problem_of(dir), "accepted");
}

TEST_F(LoadTest, ScalesMayBeStoredAsBytes) {
  const std::string dir = copy_of("small_official");
  Tensors tensors = tensors_of(dir);
  for (auto& [name, tensor] : tensors) {
    if (tensor.dtype() == DType::kF8E8M0) {
      tensor = Tensor::view(tensor.bytes(), tensor.shape(), DType::kU8).clone();
    }
  }
  write_back(dir, tensors);
  const Weights bytes = load_weights(ctx_, dir);
  const Weights original = load_weights(ctx_, kGolden + "small_official/model");
  EXPECT_EQ(row_major(bytes.layers[1].attn.wq_b), row_major(original.layers[1].attn.wq_b));
  EXPECT_EQ(row_major(bytes.layers[1].ffn.experts[5].w2),
            row_major(original.layers[1].ffn.experts[5].w2));
}

TEST_F(LoadTest, NumbersThatCannotBeComputedWithAreRefused) {
  const std::string dir = copy_of("small");
  Tensors tensors = tensors_of(dir);
  tensors["norm.weight"] = Tensor::zeros({128});
  tensors["norm.weight"].f32()[7] = NAN;
  write_back(dir, tensors);
  expect_problem(dir, {"norm.weight", "element 7", "NaN"});
  tensors["norm.weight"].f32()[7] = 1.0f;
  tensors["layers.0.ffn.gate.tid2eid"].i64()[3] = 6;
  write_back(dir, tensors);
  expect_problem(dir, {"layers.0.ffn.gate.tid2eid", "token 1", "expert 6, there are 6"});
  tensors["layers.0.ffn.gate.tid2eid"] = Tensor::zeros({256, 2});
  write_back(dir, tensors);
  expect_problem(dir, {"layers.0.ffn.gate.tid2eid", "must be I64 or I32"});
}

TEST_F(LoadTest, DirectoriesThatAreNoCheckpointAreRefused) {
  EXPECT_NE(problem_of("/nowhere/at/all").find("no model directory"), std::string::npos);
  const std::string dir = copy_of("small");
  std::filesystem::remove(dir + "/model.safetensors");
  expect_problem(dir, {"neither"});
  std::filesystem::remove(dir + "/config.json");
  expect_problem(dir, {"no config.json"});
}

}  // namespace
}  // namespace fathom
