#include "fathom/checkpoint/any_weights.h"

#include <gtest/gtest.h>

#include <cstring>
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

class AnyWeightsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "fathom_any_weights_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    make_directories(root_);
  }
  static void expect_same_masters(const Weights& a, const Weights& b) {
    std::vector<const Parameter*> others;
    for_each_parameter(b, [&](const Parameter& p) { others.push_back(&p); });
    size_t i = 0;
    for_each_parameter(a, [&](const Parameter& p) {
      ASSERT_LT(i, others.size());
      EXPECT_EQ(p.name, others[i]->name);
      EXPECT_EQ(0, std::memcmp(p.master.bytes(), others[i]->master.bytes(),
                               static_cast<size_t>(p.master.num_bytes())))
          << p.name;
      ++i;
    });
    EXPECT_EQ(i, others.size());
  }
  std::string problem_of(const std::string& path) {
    try {
      find_weights(path);
    } catch (const UserError& e) {
      return e.what();
    }
    return "accepted";
  }

  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, CpuIsa::kAvx2};
  std::string root_;
};

TEST_F(AnyWeightsTest, ModelDirectoryAndTorchDistGiveTheSameMasters) {
  const std::string model = kGolden + "small_official/model";
  const Weights expected = load_weights(ctx_, model);
  const WeightsPlace place = find_weights(model);
  EXPECT_EQ(place.kind, WeightsPlace::Kind::kModelDirectory);
  expect_same_masters(load_any_weights(ctx_, place, ""), expected);

  prepare_spmd(ctx_, ModelTensors(model), root_ + "/torch_dist");
  for (const char* path : {"/torch_dist", "/torch_dist/release"}) {
    const WeightsPlace dist = find_weights(root_ + path);
    EXPECT_EQ(dist.kind, WeightsPlace::Kind::kTorchDist);
    EXPECT_TRUE(dist.run_directory.empty());
    expect_same_masters(load_any_weights(ctx_, dist, model), expected);
  }
}

TEST_F(AnyWeightsTest, MastersOfATrainingCheckpointComeUnrounded) {
  const std::string model = kGolden + "small/model";
  for (const bool with_mtp : {true, false}) {
    Weights weights = load_weights(ctx_, model, {.with_mtp = with_mtp});
    weights.norm.master.f32()[3] = 1.0f + 0x1p-20f;  // lost in BF16
    const std::string run = root_ + (with_mtp ? "/run" : "/run_without");
    make_directories(run + "/checkpoints");
    write_file_atomic(run + "/config.json", "{}");
    save_training_state(run + "/checkpoints", 4, weights, std::vector<MomentsView>{},
                        Json::object(), std::nullopt);
    for (const char* path : {"", "/checkpoints", "/checkpoints/iter_0000004"}) {
      const WeightsPlace place = find_weights(run + path);
      EXPECT_EQ(place.run_directory, run);
      EXPECT_EQ(base_name(place.path), "iter_0000004");
      const Weights loaded = load_any_weights(ctx_, place, model);
      EXPECT_EQ(loaded.mtp.size(), with_mtp ? 1u : 0u);
      expect_same_masters(loaded, weights);
    }
  }
}

TEST_F(AnyWeightsTest, PathsWithoutWeightsAreRefused) {
  EXPECT_NE(problem_of(root_ + "/nowhere").find("no directory"), std::string::npos);
  EXPECT_NE(problem_of(root_).find("no weights here"), std::string::npos);
  make_directories(root_ + "/checkpoints");
  EXPECT_NE(problem_of(root_).find("no weights here"), std::string::npos);
}

}  // namespace
}  // namespace fathom
