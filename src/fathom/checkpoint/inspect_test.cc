#include "fathom/checkpoint/inspect.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
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

}  // namespace
}  // namespace fathom
