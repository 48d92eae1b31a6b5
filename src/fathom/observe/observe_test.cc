#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/observe/metrics.h"
#include "fathom/observe/progress.h"
#include "fathom/observe/tensorboard.h"

namespace fathom {
namespace {

std::string fresh_directory(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_observe_" + name;
  std::filesystem::remove_all(path);
  return path;
}

TEST(MetricsWriterTest, EveryStepAppearsOnceAfterAResume) {
  const std::string dir = fresh_directory("resume");
  {
    MetricsWriter writer(dir, 0);
    for (int step = 0; step < 5; ++step) writer.write(step, {{"train/loss", step * 0.1}});
  }
  MetricsWriter resumed(dir, 3);
  resumed.write(3, {{"train/loss", 7.0}});
  EXPECT_EQ(read_file(join_path(dir, "metrics.jsonl")),
            "{\"step\":0,\"train/loss\":0.0}\n{\"step\":1,\"train/loss\":0.1}\n"
            "{\"step\":2,\"train/loss\":0.2}\n{\"step\":3,\"train/loss\":7.0}\n");
  EXPECT_EQ(list_directory(join_path(dir, "tensorboard")).size(), 1u);
}

TEST(MetricsWriterTest, ALineCutByACrashIsDroppedAndADamagedOneIsAnError) {
  const std::string dir = fresh_directory("cut");
  { MetricsWriter writer(dir, 0); }
  const std::string path = join_path(dir, "metrics.jsonl");
  std::ofstream(path) << "{\"step\":0,\"a\":1.5}\n{\"step\":1,\"a\"";
  { MetricsWriter writer(dir, 2); }
  EXPECT_EQ(read_file(path), "{\"step\":0,\"a\":1.5}\n");
  std::ofstream(path) << "nonsense\n";
  EXPECT_THROW(MetricsWriter(dir, 2), UserError);
}

TEST(MetricsWriterTest, NonFiniteValuesAreNull) {
  const std::string dir = fresh_directory("nan");
  MetricsWriter(dir, 0).write(0, {{"a", std::nan("")}, {"b", 2.0}});
  EXPECT_EQ(read_file(join_path(dir, "metrics.jsonl")), "{\"step\":0,\"a\":null,\"b\":2.0}\n");
}

TEST(TensorBoardTest, Crc32cOfTheStandardCheckString) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
}

TEST(ProgressTest, ShowsTheShareDone) {
  EXPECT_EQ(progress_text("rollout", 0, 4), "rollout  [" + std::string(30, '.') + "]  0/4");
  EXPECT_EQ(progress_text("rollout", 2, 4),
            "rollout  [" + std::string(15, '#') + std::string(15, '.') + "]  2/4");
  EXPECT_EQ(progress_text("rollout", 4, 4), "rollout  [" + std::string(30, '#') + "]  4/4");
}

TEST(SparklineTest, ScalesBetweenTheBounds) {
  EXPECT_EQ(sparkline({0.0, 0.5, 1.0}, 0.0, 1.0), "\u2581\u2585\u2588");
}

}  // namespace
}  // namespace fathom
