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
#include "fathom/observe/trace.h"

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

TEST(TraceTest, SpansOfAllRanksStandInOneFileOfTheTraceFormat) {
  const std::string path = join_path(fresh_directory("trace"), "trace.json");
  make_directories(::testing::TempDir() + "fathom_observe_trace");
  std::vector<std::string> events;
  for (int rank = 0; rank < 2; ++rank) {
    Trace trace(rank);
    const auto t = Trace::Clock::now();
    trace.add("phase", "roll \"out\"", t, t + std::chrono::milliseconds(30));
    trace.add("communication", "sum", t + std::chrono::milliseconds(5),
              t + std::chrono::milliseconds(15), 4096);
    { const TraceSpan span(&trace, "phase", "scope"); }
    EXPECT_NEAR(trace.seconds("communication"), 0.010, 1e-9);
    EXPECT_GE(trace.seconds("phase"), 0.030);
    EXPECT_EQ(trace.seconds("nothing"), 0.0);
    events.push_back(trace.events());
  }
  write_trace(path, events);
  const Json json = parse_json(read_file(path), path);
  int spans = 0;
  for (const Json& event : json.at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    ++spans;
    EXPECT_TRUE(event.at("pid") == 0 || event.at("pid") == 1);
    if (event.at("name") != "sum") continue;
    EXPECT_EQ(event.at("cat"), "communication");
    EXPECT_EQ(event.at("dur"), 10000.0);
    EXPECT_EQ(event.at("args").at("bytes"), 4096);
    EXPECT_EQ(event.at("tid"), 1);  // a track of its own
  }
  EXPECT_EQ(spans, 6);
}

}  // namespace
}  // namespace fathom
