#include "fathom/checkpoint/spmd_group.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/dcp_writer.h"
#include "fathom/checkpoint/prepare_spmd.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class SpmdGroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() /
           str_cat("fathom_spmd_group_", ::getpid(), "_",
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string messages() const { return (dir_ / ".messages").string(); }
  fs::path dir_;
};

TEST_F(SpmdGroupTest, NobodyBringsBackTheDirectoryThatRank0Removed) {
  SpmdGroup first(messages(), {0, 3, "a"});
  SpmdGroup second(messages(), {1, 3, "a"});
  first.open_gate();
  EXPECT_TRUE(second.is_gate_open());
  first.finish();
  SpmdGroup late(messages(), {2, 3, "a"});
  late.fail("too late");
  ::usleep(1'200'000);  // longer than the pause between two signs of life
  EXPECT_TRUE(fs::is_empty(dir_));
}

TEST_F(SpmdGroupTest, TheOthersMayComeFirst) {
  SpmdGroup second(messages(), {1, 2, "a"});
  EXPECT_FALSE(second.is_gate_open());
  EXPECT_NO_THROW(second.check_others());
  SpmdGroup first(messages(), {0, 2, "a"});
  first.open_gate();
  EXPECT_TRUE(second.is_gate_open());
  first.fail("no luck");
  try {
    second.wait_until([] { return false; });
  } catch (const UserError& e) {
    EXPECT_EQ(std::string(e.what()), "rank 0 failed: no luck");
  }
}

TEST_F(SpmdGroupTest, TheGateOfAnotherJobStaysShut) {
  SpmdGroup first(messages(), {0, 2, "a"});
  first.open_gate();
  SpmdGroup other(messages(), {1, 2, "b"});
  EXPECT_FALSE(other.is_gate_open());
}

TEST_F(SpmdGroupTest, ASecondJobLeavesTheFirstAlone) {
  const PendingDirectory held(dir_.string(), "release", "some plan");
  ThreadPool threads(1);
  const ExecContext ctx{&threads, detect_cpu_isa()};
  const ModelTensors source(str_cat(FATHOM_SOURCE_DIR, "/tests/golden/small/model"));
  EXPECT_THROW(prepare_spmd(ctx, source, dir_.string(), {.place = {0, 2, "b"}}), UserError);
  for (const auto& entry : fs::directory_iterator(dir_)) {
    EXPECT_FALSE(entry.path().string().ends_with(".work")) << entry.path();
  }
}

}  // namespace
}  // namespace fathom
