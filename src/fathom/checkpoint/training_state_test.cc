#include "fathom/checkpoint/training_state.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_test_model.h"
#include "fathom/checkpoint/dcp_weights.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

template <typename Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const UserError& e) {
    return e.what();
  }
  return "no error";
}

// Stands for the optimizer's record.
struct Moments {
  Parameter* parameter;
  Tensor exp_avg, exp_avg_sq;
};

struct TestRun {
  Weights weights;
  std::vector<Moments> moments;

  explicit TestRun(uint64_t seed, const ModelConfig& config = small_config())
      : weights(make_weights(config)) {
    fill_weights(weights, seed);
    Weights values = make_weights(config);
    for (uint64_t k : {1, 2}) {
      fill_weights(values, seed + 1000 * k);
      size_t at = 0;
      const std::vector<Parameter*> from = parameters_by_name(values);
      size_t i = 0;
      for (Parameter* p : parameters_by_name(weights)) {
        const Tensor copy = from[i++]->master.clone();
        if (!p->has_gradient) continue;
        if (k == 1) {
          moments.push_back({p, copy, Tensor()});
        } else {
          moments[at++].exp_avg_sq = copy;
        }
      }
    }
  }
};

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.num_bytes() == b.num_bytes() &&
         std::memcmp(a.bytes(), b.bytes(), static_cast<size_t>(a.num_bytes())) == 0;
}

void expect_same(TestRun& a, TestRun& b) {
  const auto pa = parameters_by_name(a.weights), pb = parameters_by_name(b.weights);
  ASSERT_EQ(pa.size(), pb.size());
  for (size_t i = 0; i < pa.size(); ++i) {
    EXPECT_TRUE(same_bytes(pa[i]->master, pb[i]->master)) << pa[i]->name;
    EXPECT_TRUE(same_bytes(pa[i]->compute, pb[i]->compute)) << pa[i]->name;
  }
  ASSERT_EQ(a.moments.size(), b.moments.size());
  for (size_t i = 0; i < a.moments.size(); ++i) {
    EXPECT_TRUE(same_bytes(a.moments[i].exp_avg, b.moments[i].exp_avg)) << i;
    EXPECT_TRUE(same_bytes(a.moments[i].exp_avg_sq, b.moments[i].exp_avg_sq)) << i;
  }
}

std::map<std::string, std::string> files_of(const std::string& directory) {
  std::map<std::string, std::string> files;
  for (const std::string& name : list_directory(directory)) {
    files[name] = read_file(join_path(directory, name));
  }
  return files;
}

class TrainingStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() /
           str_cat("fathom_training_state_", ::getpid(), "_",
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::string dir() const { return dir_.string(); }
  fs::path dir_;
};

const Json kScalars = {{"optimizer", {{"beta1_power_bits", 1058642330u}}},
                       {"third", 1.0 / 3.0},
                       {"seed", 18446744073709551615u},
                       {"buffer", Json::array({Json{{"text", "h\u00e9"}}})}};

TEST_F(TrainingStateTest, WhatIsSavedComesBackBitForBit) {
  TestRun a(1), b(2);
  save_training_state(path("x"), 3, a.weights, a.moments, kScalars, std::nullopt);
  EXPECT_EQ(latest_training_state(path("x")), 3);
  const Json scalars = load_training_state(path("x"), 3, &b.weights, &b.moments);
  EXPECT_EQ(scalars.dump(), kScalars.dump());
  expect_same(a, b);
  save_training_state(path("y"), 3, b.weights, b.moments, scalars, std::nullopt);
  EXPECT_EQ(files_of(path("x/iter_0000003")), files_of(path("y/iter_0000003")));
}

TEST_F(TrainingStateTest, ItIsAlsoATorchDistDirectoryOfTheModel) {
  TestRun a(1), b(2);
  save_training_state(dir(), 3, a.weights, a.moments, kScalars, std::nullopt);
  load_torch_dist(dir(), &b.weights);
  b.moments = a.moments;
  expect_same(a, b);
  DcpReader reader(path("iter_0000003"));
  const Json common = reader.read_common();
  EXPECT_EQ(common["iteration"], 3);
  EXPECT_EQ(common["args"]["num_experts"], 4);
  EXPECT_EQ(common["content_metadata"]["distrib_optim_sharding_type"], "fully_reshardable");
  // Frozen tensors have no optimizer state.
  EXPECT_TRUE(reader.contains("decoder.layers.2.mlp.router.expert_bias"));
  EXPECT_FALSE(reader.contains("optimizer.state.param.decoder.layers.2.mlp.router.expert_bias"));
  EXPECT_TRUE(reader.contains("optimizer.state.exp_avg.decoder.layers.2.mlp.router.weight"));
}

TEST_F(TrainingStateTest, RetentionCountsFromOneAndKeepsTheNewest) {
  TestRun a(1);
  for (int64_t step : {0, 3, 4, 9, 11, 12}) {
    save_training_state(dir(), step, a.weights, a.moments, kScalars, 5);
  }
  EXPECT_EQ(list_training_states(dir()), (std::vector<int64_t>{4, 9, 12}));
  save_training_state(dir(), 13, a.weights, a.moments, kScalars, std::nullopt);
  EXPECT_EQ(list_training_states(dir()), (std::vector<int64_t>{4, 9, 12, 13}));
  EXPECT_EQ(latest_training_state(dir()), 13);
}

TEST_F(TrainingStateTest, NothingSavedIsNoError) {
  EXPECT_EQ(latest_training_state(dir()), std::nullopt);
  EXPECT_TRUE(list_training_states(dir()).empty());
}

TEST_F(TrainingStateTest, KilledAtAnyMomentTheRunGoesOnFromAWholeStep) {
  ModelConfig config = small_config();
  config.num_hidden_layers = 1;
  config.compress_ratios = {0, 0};
  {
    TestRun run(0, config);
    save_training_state(dir(), 0, run.weights, run.moments, Json{{"step", 0}}, 4);
  }
  // The child saves step after step, each with other values, until it is killed: at least 12 times,
  // and until six steps were reached, later and later so that a busy machine gets there too.
  int64_t reached = 0;
  for (int attempt = 0; attempt < 12 || reached < 6; ++attempt) {
    ASSERT_LT(attempt, 200);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t step = *latest_training_state(dir()) + 1;; ++step) {
        TestRun run(static_cast<uint64_t>(step), config);
        save_training_state(dir(), step, run.weights, run.moments, Json{{"step", step}}, 4);
      }
    }
    ::usleep(static_cast<useconds_t>(30000 + 7919 * attempt));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const std::optional<int64_t> latest = latest_training_state(dir());
    ASSERT_TRUE(latest.has_value());
    EXPECT_GE(*latest, reached);
    reached = *latest;
    TestRun loaded(12345, config), expected(static_cast<uint64_t>(*latest), config);
    const Json scalars = load_training_state(dir(), *latest, &loaded.weights, &loaded.moments);
    EXPECT_EQ(scalars["step"], *latest);
    expect_same(loaded, expected);
  }
  // The next save leaves nothing of what was cut off.
  const int64_t next = reached + 1;
  TestRun run(static_cast<uint64_t>(next), config);
  save_training_state(dir(), next, run.weights, run.moments, Json{{"step", next}}, 4);
  for (const std::string& name : list_directory(dir())) {
    EXPECT_FALSE(name.ends_with(".partial")) << name;
  }
}

TEST_F(TrainingStateTest, AFailedWriteLeavesTheOlderStepAndNothingElse) {
  TestRun a(1), b(2), c(3);
  save_training_state(dir(), 0, a.weights, a.moments, kScalars, 1);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {  // with a disk, as it were, that takes 100 kB
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message = error_of(
        [&] { save_training_state(dir(), 1, b.weights, b.moments, kScalars, std::nullopt); });
    ::_exit(message.find("cannot write") != std::string::npos ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(latest_training_state(dir()), 0);
  EXPECT_EQ(list_training_states(dir()), std::vector<int64_t>{0});
  EXPECT_FALSE(fs::exists(path(".iter_0000001.partial")));
  load_training_state(dir(), 0, &c.weights, &c.moments);
  expect_same(a, c);
}

TEST_F(TrainingStateTest, SavingAStepAgainReplacesIt) {
  TestRun a(1), b(2), c(3);
  save_training_state(dir(), 3, a.weights, a.moments, kScalars, std::nullopt);
  save_training_state(dir(), 3, b.weights, b.moments, kScalars, std::nullopt);
  load_training_state(dir(), 3, &c.weights, &c.moments);
  expect_same(b, c);
}

TEST_F(TrainingStateTest, OtherModelsAndOtherTrainedSetsAreRefused) {
  TestRun a(1);
  save_training_state(dir(), 3, a.weights, a.moments, kScalars, std::nullopt);
  ModelConfig wide = small_config();
  wide.hidden_size = 64;
  TestRun b(2, wide);
  EXPECT_NE(error_of([&] {
              load_training_state(dir(), 3, &b.weights, &b.moments);
            }).find("the model needs"),
            std::string::npos);
  TestRun c(2);
  c.moments.pop_back();
  EXPECT_NE(error_of([&] {
              load_training_state(dir(), 3, &c.weights, &c.moments);
            }).find("which this run does not train"),
            std::string::npos);
  std::ofstream(tracker_path(dir())) << "release";
  EXPECT_NE(error_of([&] { latest_training_state(dir()); }).find("converted checkpoint"),
            std::string::npos);
  std::ofstream(tracker_path(dir())) << "4";
  EXPECT_NE(error_of([&] { latest_training_state(dir()); }).find("not a whole checkpoint"),
            std::string::npos);
}

}  // namespace
}  // namespace fathom
