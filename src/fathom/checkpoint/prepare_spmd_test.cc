#include "fathom/checkpoint/prepare_spmd.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/load.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class PrepareSpmdOnceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::replace(name.begin(), name.end(), '/', '_');
    dir_ = fs::temp_directory_path() / str_cat("fathom_prepare_spmd_", ::getpid(), "_", name);
    fs::remove_all(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  static std::string golden(const std::string& name) {
    return str_cat(FATHOM_SOURCE_DIR, "/tests/golden/", name, "/model");
  }

  fs::path dir_;
  ThreadPool threads_{2};
  ExecContext ctx_{&threads_, detect_cpu_isa()};
};

class PrepareSpmdTest : public PrepareSpmdOnceTest,
                        public ::testing::WithParamInterface<const char*> {};

float rounded_to_bf16(float value) {
  const double spacing = std::ldexp(1.0, std::ilogb(value) - 7);
  return value == 0.0f
             ? value
             : static_cast<float>(std::nearbyint(static_cast<double>(value) / spacing) * spacing);
}

TEST_P(PrepareSpmdTest, EveryTensorArrivesWithTheBitsOfTheSource) {
  const ModelTensors source(golden(GetParam()));
  // Small limits, so that tensors are cut and come in pieces as those of a large model do.
  const PrepareSpmdResult result = prepare_spmd(
      ctx_, source, dir_.string(), {.plan = {.piece_bytes = 5000, .split_from_bytes = 8192}});
  EXPECT_FALSE(result.was_there);
  EXPECT_GT(result.num_chunks, result.num_tensors + 7);
  EXPECT_EQ(read_file(tracker_path(dir_.string())), "release");

  const Weights expected = load_weights(ctx_, source);
  Weights loaded = make_weights(source.config());
  for_each_parameter(loaded, [](Parameter& p) { p.alloc(); });
  load_torch_dist(dir_.string(), &loaded);
  std::vector<const Parameter*> from, to;
  for_each_parameter(expected, [&](const Parameter& p) { from.push_back(&p); });
  for_each_parameter(std::as_const(loaded), [&](const Parameter& p) { to.push_back(&p); });
  ASSERT_EQ(from.size(), to.size());
  EXPECT_EQ(result.num_tensors, static_cast<int64_t>(from.size()));
  int64_t num_kept = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    const Parameter &a = *from[i], &b = *to[i];
    ASSERT_EQ(a.master.num_bytes(), b.master.num_bytes());
    if (a.kind == ParameterKind::kTable || a.export_dtype == DType::kF32) {
      num_kept += a.kind != ParameterKind::kTable;
      EXPECT_EQ(std::memcmp(a.master.bytes(), b.master.bytes(),
                            static_cast<size_t>(a.master.num_bytes())),
                0)
          << a.name;
      continue;
    }
    int64_t wrong = 0;
    for (int64_t k = 0; k < a.master.numel(); ++k) {
      wrong += rounded_to_bf16(a.master.f32()[k]) != b.master.f32()[k];
    }
    EXPECT_EQ(wrong, 0) << a.name;
  }
  EXPECT_EQ(result.num_kept_fp32, num_kept);
  // The plain model is stored in F32, the quantised ones decode to BF16.
  const bool is_f32 = std::string(GetParam()) == "small";
  EXPECT_EQ(result.num_rounded > 0, is_f32);
}

INSTANTIATE_TEST_SUITE_P(Golden, PrepareSpmdTest,
                         ::testing::Values("small", "small_official", "small_base", "small_sgl"),
                         [](const auto& name) { return std::string(name.param); });

TEST_F(PrepareSpmdOnceTest, FinishedWorkIsNotDoneAgainAndUnfinishedWorkIs) {
  const ModelTensors source(golden("small"));
  fs::create_directories(dir_ / ".release.partial");
  std::ofstream(dir_ / ".release.partial" / "__0_0.distcp") << "half";
  fs::create_directories(dir_ / "release");  // published, but killed before the tracker
  std::ofstream(dir_ / "release" / "__0_9.distcp") << "old";
  EXPECT_FALSE(prepare_spmd(ctx_, source, dir_.string()).was_there);
  EXPECT_FALSE(fs::exists(dir_ / "release" / "__0_9.distcp"));
  EXPECT_FALSE(fs::exists(dir_ / ".release.partial"));
  EXPECT_TRUE(prepare_spmd(ctx_, source, dir_.string()).was_there);
}

TEST_F(PrepareSpmdOnceTest, ADirectoryOfARunIsRefused) {
  const ModelTensors source(golden("small"));
  fs::create_directories(dir_);
  std::ofstream(tracker_path(dir_.string())) << "20";
  try {
    prepare_spmd(ctx_, source, dir_.string());
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("holds the checkpoints of a training run"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace fathom
