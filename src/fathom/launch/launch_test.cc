#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/launch/copy_tree.h"
#include "fathom/launch/stages.h"

namespace fathom {
namespace {

using config::Command;
using config::ParsedCommand;

void write(const std::string& path, const std::string& text) {
  make_directories(parent_path(path));
  write_file_atomic(path, text);
}

class LaunchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/launch_test_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
    write(root_ + "/recipes/tiny/base/config.json", R"({"model_type": "deepseek_v4"})");
    write(root_ + "/recipes/tiny/base/model.safetensors", "weights");
    write(root_ + "/recipes/tiny/data/train.jsonl", "{}\n");
    write(root_ + "/recipes/tiny/data/heldout.jsonl", "{}\n");
    log_to_file(root_ + "/log");
  }
  void TearDown() override {
    log_to_file("");
    std::filesystem::remove_all(root_);
  }

  /// Runs a subcommand with directories of this test; the work is written down in calls_.
  void launch(Command command, std::vector<std::string> args = {}) {
    for (const auto& [name, place] :
         {std::pair{"--model-dir", "/models"}, {"--data-dir", "/data"}, {"--save-dir", "/runs"}}) {
      args.push_back(name);
      args.push_back(root_ + place);
    }
    const ParsedCommand parsed = config::parse_command_line(command, args, {});
    StageFunctions functions;
    functions.cast_to_bf16 = [&](const std::string& from, const std::string& to) {
      calls_.push_back("cast " + shorten(from) + " " + shorten(to));
      write(join_path(to, kShardIndex), "{}");
    };
    functions.convert_to_torch_dist = [&](const std::string& from, const std::string& to) {
      calls_.push_back("convert " + shorten(from) + " " + shorten(to));
      write(join_path(to, "release/weights"), "bytes");
      write(join_path(to, kTracker), "release");
    };
    functions.train = [&](const config::Options& o) {
      calls_.push_back("train " + shorten(*o.launch.hf_checkpoint) + " " +
                       shorten(*o.checkpoint.ref_load));
    };
    Launcher(parsed, functions, root_ + "/recipes").run();
  }

  std::vector<std::string> take_calls() { return std::exchange(calls_, {}); }
  std::string shorten(const std::string& path) const {
    return path.starts_with(root_) ? path.substr(root_.size() + 1) : path;
  }
  int count_skips() const {
    int count = 0;
    std::ifstream log(root_ + "/log");
    for (std::string line; std::getline(log, line);)
      count += line.starts_with("[full_train] Skipping ");
    return count;
  }

  const std::vector<std::string> tiny_ = {"--model-name", config::kTiny};
  const std::vector<std::string> tiny_two_step_ = {"--model-name", config::kTiny, "--conversion",
                                                   "two-step"};
  std::string root_;
  std::vector<std::string> calls_;
};

using Calls = std::vector<std::string>;
const std::string kModel = "models/DeepSeek-V4-Tiny-FP8";

TEST_F(LaunchTest, FullTrainRunsEveryStageOnceAndThenSkipsThem) {
  launch(Command::kFullTrain, tiny_two_step_);
  EXPECT_EQ(take_calls(), (Calls{"cast " + kModel + " " + kModel + "-bf16",
                                 "convert " + kModel + "-bf16 " + kModel + "_torch_dist",
                                 "train " + kModel + " " + kModel + "_torch_dist"}));
  EXPECT_EQ(read_file(root_ + "/data/digit_sum/heldout.jsonl"), "{}\n");
  EXPECT_EQ(count_skips(), 1);  // prepare-cp

  launch(Command::kFullTrain, tiny_two_step_);
  EXPECT_EQ(take_calls(), (Calls{"train " + kModel + " " + kModel + "_torch_dist"}));
  EXPECT_EQ(count_skips(), 5);  // and now the download, the cast, the conversion, prepare-cp
}

TEST_F(LaunchTest, SinglePassConvertsTheCheckpointItself) {
  launch(Command::kFullTrain, tiny_);
  EXPECT_EQ(take_calls(), (Calls{"convert " + kModel + " " + kModel + "_torch_dist",
                                 "train " + kModel + " " + kModel + "_torch_dist"}));
  EXPECT_EQ(count_skips(), 2);
}

TEST_F(LaunchTest, AStageWithoutItsSentinelRunsAgain) {
  launch(Command::kFullTrain, tiny_two_step_);
  take_calls();
  remove_file(root_ + "/" + kModel + "_torch_dist/" + kTracker);
  launch(Command::kFullTrain, tiny_two_step_);
  EXPECT_EQ(take_calls().size(), 2u);
  // A tracker of a training step is not one of whole weights.
  write(root_ + "/" + kModel + "_torch_dist/" + kTracker, "100");
  launch(Command::kFullTrain, tiny_two_step_);
  EXPECT_EQ(take_calls().size(), 2u);
  write(root_ + "/" + kModel + "_torch_dist/" + kTracker, " release\n");
  launch(Command::kFullTrain, tiny_two_step_);
  EXPECT_EQ(take_calls().size(), 1u);
}

TEST_F(LaunchTest, AnotherBuiltInBaseMakesItsConversionsAgain) {
  launch(Command::kFullTrain, tiny_two_step_);
  take_calls();
  write(root_ + "/recipes/tiny/base/model.safetensors", "weightS");
  launch(Command::kFullTrain, tiny_two_step_);
  EXPECT_EQ(take_calls().size(), 3u);
  EXPECT_EQ(read_file(root_ + "/" + kModel + "/model.safetensors"), "weightS");
}

TEST_F(LaunchTest, AFailedStageIsNotTakenForDone) {
  const ParsedCommand parsed =
      config::parse_command_line(Command::kFullTrain,
                                 {"--model-name", config::kTiny, "--model-dir", root_ + "/models",
                                  "--data-dir", root_ + "/data"},
                                 {});
  StageFunctions functions;
  functions.convert_to_torch_dist = [](const std::string&, const std::string&) {
    throw UserError("no space");
  };
  functions.train = [](const config::Options&) { FAIL() << "trained without weights"; };
  EXPECT_THROW(Launcher(parsed, functions, root_ + "/recipes").run(), UserError);
  launch(Command::kFullTrain, tiny_);
  EXPECT_EQ(take_calls().size(), 2u);
}

TEST_F(LaunchTest, PrepareCpCopiesAndTrainUsesTheCopy) {
  std::vector<std::string> args = tiny_;
  args.insert(args.end(), {"--model-local-dir", root_ + "/local"});
  launch(Command::kFullTrain, args);
  const std::string local = "local/DeepSeek-V4-Tiny-FP8";
  EXPECT_EQ(take_calls().back(), "train " + local + " " + local + "_torch_dist");
  EXPECT_EQ(read_file(root_ + "/" + local + "/model.safetensors"), "weights");
  EXPECT_EQ(read_file(root_ + "/" + local + "_torch_dist/" + kTracker), "release");
}

TEST_F(LaunchTest, PrepareSpmdConvertsAGivenCheckpointToAGivenPlace) {
  launch(Command::kPrepareSpmd, {"--hf-checkpoint", root_ + "/mine", "--save", root_ + "/out"});
  EXPECT_EQ(take_calls(), (Calls{"convert mine out"}));
  launch(Command::kPrepareSpmd, {"--hf-checkpoint", root_ + "/mine"});
  EXPECT_EQ(take_calls(), (Calls{"convert mine models/mine_torch_dist"}));
}

TEST_F(LaunchTest, PrepareSingleTakesTheRecipesTwoPaths) {
  launch(Command::kPrepareSingle,
         {"--input-fp8-hf-path", root_ + "/in", "--output-bf16-hf-path", root_ + "/out"});
  EXPECT_EQ(take_calls(), (Calls{"cast in out"}));
  launch(Command::kPrepareSingle, {"--hf-checkpoint", root_ + "/mine"});
  EXPECT_EQ(take_calls(), (Calls{"cast mine models/mine-bf16"}));
}

TEST_F(LaunchTest, HubDownloadsAreRefusedUnlessTheFilesAreThere) {
  const std::vector<std::string> args = {"--model-name", config::kFlash4Layer, "--task", "gsm8k"};
  EXPECT_THROW(launch(Command::kPrepareDownload, args), ConfigError);
  const std::string model = root_ + "/models/" + config::kFlash4Layer;
  write(model + "/model.safetensors", "x");
  write(model + "/config.json", "{\n  \"model_type\": \"deepseek_ref\"\n}");
  try {
    launch(Command::kPrepareDownload, args);
    FAIL() << "data sets are missing";
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("downloading zhuzilin/gsm8k: this build has no Hub"),
              std::string::npos);
  }
  write(root_ + "/data/gsm8k/train.parquet", "");
  write(root_ + "/data/gsm8k/test.parquet", "");
  launch(Command::kPrepareDownload, args);
  // The 4-layer model's type is rewritten on the way.
  EXPECT_EQ(read_file(model + "/config.json"), "{\n  \"model_type\": \"deepseek_v4\"\n}");
}

TEST_F(LaunchTest, OnlyTheLiteralModelTypeIsRewritten) {
  EXPECT_FALSE(rewrite_deepseek_ref(root_ + "/none"));
  write(root_ + "/a/config.json", R"({"model_type":"deepseek_ref"})");
  EXPECT_FALSE(rewrite_deepseek_ref(root_ + "/a"));
  write(root_ + "/a/config.json", R"({"x": 1, "model_type": "deepseek_ref", "y": 2})");
  EXPECT_TRUE(rewrite_deepseek_ref(root_ + "/a"));
  EXPECT_EQ(read_file(root_ + "/a/config.json"),
            R"({"x": 1, "model_type": "deepseek_v4", "y": 2})");
}

TEST_F(LaunchTest, CopiesKeepWhatIsEqualAndMendWhatIsNot) {
  const std::string from = root_ + "/from", to = root_ + "/to";
  write(from + "/sub/a", "aaaa");
  write(from + "/b", "");
  write(from + "/" + kTracker, "release");
  EXPECT_EQ(copy_tree(from, to).num_copied, 3);
  EXPECT_EQ(copy_tree(from, to).num_kept, 3);
  write(to + "/sub/a", "aaab");
  write(to + "/other", "stays");
  const CopyResult mended = copy_tree(from, to);
  EXPECT_EQ(mended.num_copied, 2);  // the file, and the sentinel behind it
  EXPECT_EQ(mended.num_bytes, 11);
  EXPECT_EQ(read_file(to + "/sub/a"), "aaaa");
  EXPECT_EQ(read_file(to + "/other"), "stays");
  EXPECT_THROW(copy_tree(root_ + "/none", to), UserError);
}

TEST_F(LaunchTest, AVerifiedCopyHasTheTimeOfItsSourceAndIsNotReadAgain) {
  const std::string from = root_ + "/from", to = root_ + "/to";
  write(from + "/a", std::string(20 << 20, 'x'));
  EXPECT_EQ(copy_tree(from, to).num_bytes, 20 << 20);
  EXPECT_EQ(std::filesystem::last_write_time(to + "/a"),
            std::filesystem::last_write_time(from + "/a"));
  // Another time: the bytes decide, and a wrong one is mended.
  std::string bytes = read_file(to + "/a");
  bytes[12 << 20] = 'y';
  write(to + "/a", bytes);
  EXPECT_EQ(copy_tree(from, to).num_copied, 1);
  EXPECT_EQ(read_file(to + "/a"), read_file(from + "/a"));
  EXPECT_EQ(copy_tree(from, to).num_kept, 1);
  // Trained further: same size, later time.
  write(from + "/a", std::string(20 << 20, 'z'));
  EXPECT_FALSE(is_copied(from, to));
  EXPECT_EQ(copy_tree(from, to).num_copied, 1);
  EXPECT_EQ(read_file(to + "/a"), read_file(from + "/a"));
}

TEST_F(LaunchTest, AnInterruptedCopyHasNoSentinel) {
  const std::string from = root_ + "/from", to = root_ + "/to";
  write(from + "/a", "new");
  write(from + "/" + kTracker, "release");
  write(to + "/" + kTracker, "release");
  make_directories(to + "/a");  // in the way of the copy
  EXPECT_THROW(copy_tree(from, to), UserError);
  EXPECT_FALSE(file_exists(to + "/" + kTracker));
}

}  // namespace
}  // namespace fathom
