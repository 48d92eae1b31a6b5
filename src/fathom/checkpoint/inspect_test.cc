#include "fathom/checkpoint/inspect.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/file_hash.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/inspect_diff.h"
#include "fathom/checkpoint/inspect_verify.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/prepare_spmd.h"
#include "fathom/checkpoint/training_state.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

std::string fresh_directory(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_inspect_" + name;
  fs::remove_all(path);
  make_directories(path);
  return path;
}

void expect_contains(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(text.find(part), std::string::npos) << "expected \"" << part << "\" in:\n" << text;
  }
}

TEST(InspectTest, QuantisedModel) {
  const Json found = inspect_path(kGolden + "small_official/model");
  EXPECT_EQ(found["kind"], "model");
  EXPECT_EQ(found["names"], "official");
  EXPECT_EQ(found["num_files"], 3);
  EXPECT_EQ(found["types"]["I8"]["tensors"], 90);
  EXPECT_EQ(found["types"]["F8_E4M3"]["tensors"], 44);
  EXPECT_EQ(found["model"]["fp4_weights"], 90);
  EXPECT_EQ(found["model"]["fp8_weights"], 44);
  EXPECT_EQ(found["model"]["mtp_modules"], 1);
  EXPECT_EQ(found["tensors"].size(), found["num_tensors"]);
  int64_t bytes = 0;
  for (const auto& type : found["types"]) bytes += type["bytes"].get<int64_t>();
  EXPECT_EQ(bytes, found["bytes"]);
  expect_contains(inspect_table(found),
                  {"official names", "layers.*.ffn.experts.*.w1.weight", "I8       [64, 64]  x 24",
                   "compress_ratios", "[0,4,16,4,0]"});
}

TEST(InspectTest, FileAndDamagedModel) {
  const Json file = inspect_path(kGolden + "small/case.safetensors");
  EXPECT_EQ(file["kind"], "safetensors");
  EXPECT_FALSE(file.contains("names"));
  expect_contains(inspect_table(file), {"greedy.tokens", "grad_norm.layers.*.hc_attn_fn"});

  const std::string dir = fresh_directory("damaged");
  fs::copy(kGolden + "small_sgl/model", dir, fs::copy_options::recursive);
  fs::copy_file(kGolden + "small/model/config.json", dir + "/config.json",
                fs::copy_options::overwrite_existing);
  Json config = read_json_file(dir + "/config.json");
  config["hidden_size"] = 256;
  write_file_atomic(dir + "/config.json", config.dump());
  const Json damaged = inspect_path(dir);
  EXPECT_EQ(damaged["names"], "sglang");
  expect_contains(inspect_table(damaged), {"problem: ", "must decode to"});
  fs::resize_file(dir + "/model-00001-of-00003.safetensors", 1000);
  EXPECT_THROW(inspect_path(dir), UserError);
}

TEST(InspectTest, TorchDistCheckpointsAndRun) {
  const std::string dir = fresh_directory("run");
  ThreadPool pool(2);
  const ExecContext ctx{&pool, CpuIsa::kAvx2};
  prepare_spmd(ctx, ModelTensors(kGolden + "small_sgl/model"), dir + "/torch_dist");
  const Json dist = inspect_path(dir + "/torch_dist");
  EXPECT_EQ(dist["kind"], "torch_dist");
  EXPECT_EQ(dist["types"]["I32"]["tensors"], 1);
  expect_contains(inspect_table(dist), {"decoder.layers.*.mlp.experts.experts.linear_fc1"});

  const std::string run = dir + "/run";
  make_directories(run + "/checkpoints");
  write_file_atomic(run + "/config.json", R"({"command": "train", "hash": "abc", "options": {}})");
  write_file_atomic(run + "/metrics.jsonl", "{\"step\": 0}\n{\"step\": 1}\n{\"ste");
  EXPECT_EQ(inspect_path(run)["checkpoints"]["steps"], Json::array());
  const Weights weights = load_weights(ctx, kGolden + "small/model");
  for (const int64_t step : {0, 1}) {
    save_training_state(run + "/checkpoints", step, weights, std::vector<MomentsView>{},
                        Json::object(), std::nullopt);
  }
  const Json found = inspect_path(run);
  EXPECT_EQ(found["kind"], "run");
  EXPECT_EQ(found["last_metrics"]["step"], 1);
  EXPECT_EQ(found["checkpoints"]["latest"], 1);
  expect_contains(inspect_table(found),
                  {"`fathom train`", "configuration abc", "steps 0 1; a run goes on after 1"});
  EXPECT_EQ(inspect_path(run + "/checkpoints")["kind"], "checkpoints");
  EXPECT_EQ(inspect_path(run + "/checkpoints/iter_0000001")["kind"], "torch_dist");
}

TEST(InspectTest, AnythingElseIsRefused) {
  const std::string dir = fresh_directory("other");
  EXPECT_THROW(inspect_path(dir), UserError);
  EXPECT_THROW(inspect_path(dir + "/nowhere"), UserError);
  write_file_atomic(dir + "/notes.txt", "not tensors");
  EXPECT_THROW(inspect_path(dir + "/notes.txt"), UserError);
}

// Copies a golden model and changes bytes of one tensor's file.
std::string copy_of(const std::string& model, const std::string& name) {
  const std::string dir = fresh_directory(name);
  fs::copy(kGolden + model + "/model", dir, fs::copy_options::recursive);
  return dir;
}

void flip_byte(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(at);
  file.put(byte);
}

TEST(InspectTest, LayoutOfTorchDist) {
  const Json found = inspect_path(kGolden + "python_dcp/checkpoint");
  EXPECT_EQ(found["layout"]["files"], 2);
  EXPECT_EQ(found["layout"]["ranks"], 2);
  EXPECT_GT(found["layout"]["tensors_in_pieces"], 0);
  expect_contains(inspect_table(found), {"tensors_in_pieces"});
}

TEST(InspectDiffTest, EqualAndChangedModels) {
  const std::string dir = copy_of("small", "diff");
  const Json equal = diff_checkpoints(kGolden + "small/model", dir);
  EXPECT_TRUE(equal["equal"]);
  expect_contains(diff_table(equal), {"0 differ", "\nequal\n"});

  // One element of one tensor moves by a known amount.
  const TensorShards shards(dir);
  const StoredTensor* norm = shards.find("norm.weight");
  ASSERT_NE(norm, nullptr);
  const float old = reinterpret_cast<const float*>(norm->data())[3];
  std::fstream file(dir + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(norm->entry->begin + 3 * 4);
  const float changed = old + 0.25f;
  file.write(reinterpret_cast<const char*>(&changed), 4);
  file.close();
  const Json diff = diff_checkpoints(kGolden + "small/model", dir);
  EXPECT_FALSE(diff["equal"]);
  ASSERT_EQ(diff["different"].size(), 1u);
  const Json& found = diff["different"][0];
  EXPECT_EQ(found["name"], "norm.weight");
  EXPECT_EQ(found["num_different"], 1);
  EXPECT_EQ(found["first_different"], 3);
  EXPECT_EQ(found["max_abs_diff"].get<double>(), std::fabs(double{changed} - double{old}));
  EXPECT_EQ(diff["num_equal"].get<size_t>() + 1, shards.tensors().size());
}

TEST(InspectDiffTest, DialectsTypesShapesAndNames) {
  // The same model under other names, in FP4 and FP8 here, in FP8 and other layouts there.
  const Json dialects =
      diff_checkpoints(kGolden + "small_official/model", kGolden + "small_sgl/model");
  EXPECT_GT(dialects["num_equal"], 0);
  for (const Json& d : dialects["different"])
    EXPECT_TRUE(d["a"] != d["b"] || d.contains("max_abs_diff")) << d;
  const Json others = diff_checkpoints(kGolden + "small/model", kGolden + "small/case.safetensors");
  EXPECT_FALSE(others["only_in_a"].empty());
  EXPECT_FALSE(others["only_in_b"].empty());
}

TEST(InspectDiffTest, NotANumberOnOneSide) {
  const std::string a = copy_of("small", "nan_a"), b = copy_of("small", "nan_b");
  const int64_t at = TensorShards(b).find("norm.weight")->entry->begin;
  std::fstream file(b + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(at);
  const float nan = std::nanf("");
  file.write(reinterpret_cast<const char*>(&nan), 4);
  file.close();
  const Json diff = diff_checkpoints(a, b);
  EXPECT_TRUE(diff["different"].at(0)["max_abs_diff"].is_null());
  expect_contains(diff_table(diff), {"largest difference not a number"});
}

TEST(InspectDiffTest, TorchDistHoweverItIsCut) {
  const std::string dir = fresh_directory("diff_dist");
  fs::copy(kGolden + "python_dcp/checkpoint", dir, fs::copy_options::recursive);
  EXPECT_TRUE(diff_checkpoints(dir, kGolden + "python_dcp/checkpoint")["equal"]);
}

TEST(InspectDiffTest, TorchDistAndSafetensorsByWhatTheyDecodeTo) {
  ThreadPool pool(2);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  // FP4 and FP8 under two dialects of names: the conversion has their values, and the table of
  // experts in a narrower type.
  for (const std::string model : {"small_official", "small_sgl"}) {
    const std::string dir = fresh_directory("diff_kinds_" + model);
    prepare_spmd(ctx, ModelTensors(kGolden + model + "/model"), dir);
    const Json diff = diff_checkpoints(kGolden + model + "/model", dir);
    EXPECT_TRUE(diff["equal"]) << diff_table(diff);
    EXPECT_EQ(diff["num_equal"].get<size_t>() + diff["other_type"].size(),
              ModelTensors(kGolden + model + "/model").sources().size());
    for (const Json& t : diff["other_type"])
      expect_contains(t["name"].get<std::string>(), {"tid2eid"});
    expect_contains(diff_table(diff), {"\nequal\n"});
    EXPECT_EQ(diff_checkpoints(dir, kGolden + model + "/model")["num_equal"], diff["num_equal"]);
  }
  // One value of an expert's second half is another one, and one tensor is gone.
  const std::string dir = fresh_directory("diff_kinds_changed"),
                    model = copy_of("small", "changed");
  prepare_spmd(ctx, ModelTensors(model), dir);
  const TensorShards shards(model);
  const StoredTensor* w3 = shards.find("layers.1.ffn.experts.2.w3.weight");
  ASSERT_NE(w3, nullptr);
  std::fstream file(model + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(w3->entry->begin + 5 * 4);
  const float changed = 1024;
  file.write(reinterpret_cast<const char*>(&changed), 4);
  file.close();
  const Json diff = diff_checkpoints(dir, model);
  EXPECT_FALSE(diff["equal"]);
  bool is_found = false;
  for (const Json& d : diff["different"]) {
    EXPECT_EQ(d["a"]["dtype"], "BF16");  // the others were rounded
    EXPECT_EQ(d["b"]["dtype"], "F32");
    if (d["name"] != "layers.1.ffn.experts.2.w3.weight") {
      EXPECT_LT(d["max_abs_diff"].get<double>(), 0.1);
      continue;
    }
    is_found = true;
    EXPECT_EQ(d["a"]["shape"], Json(w3->shape()));
    EXPECT_GT(d["max_abs_diff"].get<double>(), 1000);
  }
  EXPECT_TRUE(is_found);
}

TEST(InspectVerifyTest, SoundPlacesHaveNoProblems) {
  for (const char* place : {"small/model", "small_official/model", "small_sgl/model",
                            "python_dcp/checkpoint", "small/case.safetensors"}) {
    const Json report = verify_path(kGolden + place);
    EXPECT_TRUE(report["ok"]) << report.dump(1);
    EXPECT_GT(report["bytes"], 0);
    EXPECT_FALSE(report["files"].empty());
  }
  EXPECT_THROW(verify_path(fresh_directory("verify_nothing")), UserError);
}

TEST(InspectVerifyTest, DamageIsFoundWhereverItIs) {
  const std::string dir = fresh_directory("verify_dist");
  fs::copy(kGolden + "python_dcp/checkpoint", dir, fs::copy_options::recursive);
  const DcpReader reader(dir);
  const DcpChunk& chunk = reader.metadata().tensors.begin()->second.chunks[0];
  flip_byte(dir + "/" + chunk.file, chunk.offset + 704);  // in the elements
  expect_contains(verify_table(verify_path(dir)), {"problem: ", "1 problem", chunk.file});

  const std::string model = copy_of("small_official", "verify_model");
  fs::resize_file(model + "/model-00002-of-00003.safetensors", 5000);
  const Json report = verify_path(model);
  EXPECT_FALSE(report["ok"]);
  expect_contains(verify_table(report), {"model-00002-of-00003.safetensors", "truncated"});
  fs::remove(model + "/model-00002-of-00003.safetensors");
  EXPECT_FALSE(verify_path(model)["ok"]);
}

TEST(InspectVerifyTest, HashesOfDownloads) {
  const std::string dir = copy_of("small", "verify_hub");
  const std::string notes = dir + "/.cache/huggingface/download/";
  make_directories(notes);
  const auto note = [&](const std::string& name, const std::string& hash, const char* time) {
    write_file_atomic(notes + name + ".metadata",
                      std::string(40, 'a') + "\n" + hash + "\n" + time + "\n");
  };
  note("model.safetensors", file_sha256(dir + "/model.safetensors"), "9999999999.5");
  note("config.json", file_git_sha1(dir + "/config.json"), "9999999999.5");
  const Json good = verify_path(dir);
  EXPECT_TRUE(good["ok"]);
  expect_contains(verify_table(good), {"header, sha256", "json, git sha1"});
  flip_byte(dir + "/model.safetensors",
            static_cast<int64_t>(fs::file_size(dir + "/model.safetensors")) - 1);
  expect_contains(verify_table(verify_path(dir)), {"the Hub promised", "1 problem"});
  note("model.safetensors", std::string(64, '0'), "1.0");  // changed after the download
  const Json changed = verify_path(dir);
  EXPECT_TRUE(changed["ok"]);
  expect_contains(verify_table(changed), {"was changed after its download"});
}

}  // namespace
}  // namespace fathom
