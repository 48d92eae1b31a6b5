// Conversions for every layout, by one process or several, killed or not, hold the same tensors.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/cast.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/dcp_test_model.h"
#include "fathom/checkpoint/dcp_writer.h"
#include "fathom/checkpoint/export_hf.h"
#include "fathom/checkpoint/prepare_spmd.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class SpmdLayoutsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() /
           str_cat("fathom_spmd_layouts_", ::getpid(), "_",
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }

  // FP8 with every kind of layer, and widths that all layouts below divide.
  std::string make_source() {
    ModelConfig c = small_config();
    c.hidden_size = 256;
    c.o_groups = 4;
    c.moe_intermediate_size = 160;  // ends inside a block of 128
    c.max_position_embeddings = 4096;
    Weights weights = make_weights(c);
    fill_weights(weights, 7);
    export_hf(ctx_, weights,
              {.output = path("source"), .format = ExportFormat::kFp8, .max_shard_bytes = 300'000});
    return path("source");
  }

  PrepareSpmdOptions options(const ParallelLayout& layout) const {
    PrepareSpmdOptions o;
    o.plan.layout = layout;
    o.plan.piece_bytes = 30'000;
    o.plan.split_from_bytes = 8192;
    o.plan.max_file_bytes = 400'000;
    return o;
  }

  static std::map<std::string, std::string> tensors(const std::string& directory) {
    DcpReader reader(resolve_checkpoint(directory));
    std::map<std::string, std::string> all;
    for (const auto& [key, t] : reader.metadata().tensors) {
      const Tensor value = reader.read(key);
      all[key] = std::string(reinterpret_cast<const char*>(value.bytes()),
                             static_cast<size_t>(value.num_bytes()));
    }
    return all;
  }

  static std::map<std::string, std::string> file_bytes(const std::string& directory) {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(directory)) {
      if (entry.is_regular_file()) {
        all[fs::relative(entry.path(), directory).string()] = read_file(entry.path().string());
      }
    }
    return all;
  }

  fs::path dir_;
  ThreadPool threads_{2};
  ExecContext ctx_{&threads_, detect_cpu_isa()};
};

std::vector<ParallelLayout> layouts() {
  ParallelLayout first_last{.pipeline = 2};
  first_last.first_layers = 3;
  first_last.last_layers = 1;
  return {ParallelLayout{},
          {.tensor = 2},
          {.tensor = 4, .expert = 2},
          first_last,
          {.tensor = 2, .pipeline = 2, .expert = 4, .vocab_multiple = 8},
          {.tensor = 1, .pipeline = 1, .expert = 2, .expert_tensor = 2}};
}

TEST_F(SpmdLayoutsTest, EveryLayoutReadsBackAsEveryOther) {
  const ModelTensors source(make_source());
  std::vector<std::string> places;
  for (const ParallelLayout& layout : layouts()) {
    places.push_back(path(str_cat("layout", places.size())));
    const PrepareSpmdResult result = prepare_spmd(ctx_, source, places.back(), options(layout));
    EXPECT_GE(result.num_files, layout.num_ranks());
    // Every source byte once: no layout makes a tensor be read twice.
    EXPECT_LE(result.num_bytes_read, source.shards().total_bytes() * 102 / 100)
        << layout.to_string();
    EXPECT_LE(result.num_bytes_written, result.num_bytes);
  }
  const std::map<std::string, std::string> expected = tensors(places[0]);
  for (size_t i = 1; i < places.size(); ++i) EXPECT_EQ(tensors(places[i]), expected) << i;
  // Any rank's boxes of one layout, read out of another.
  for (const std::string& wanted : places) {
    DcpReader boxes(resolve_checkpoint(wanted));
    for (const std::string& stored : places) {
      DcpReader reader(resolve_checkpoint(stored));
      for (const auto& [key, t] : boxes.metadata().tensors) {
        for (const DcpChunk& c : t.chunks) {
          const Tensor a = Tensor::empty(c.sizes, t.dtype), b = Tensor::empty(c.sizes, t.dtype);
          boxes.read_box(key, c.offsets, c.sizes, a.bytes());
          reader.read_box(key, c.offsets, c.sizes, b.bytes());
          ASSERT_EQ(std::memcmp(a.bytes(), b.bytes(), static_cast<size_t>(a.num_bytes())), 0)
              << key << " of " << wanted << " in " << stored;
        }
      }
    }
  }
}

TEST_F(SpmdLayoutsTest, FilesBearTheRanksThatMegatronWouldWriteThemOn) {
  const ModelTensors source(make_source());
  const ParallelLayout layout{.tensor = 2, .pipeline = 2, .expert = 4, .vocab_multiple = 8};
  const SpmdPlan plan = make_spmd_plan(source, options(layout).plan);
  ASSERT_EQ(layout.num_ranks(), 8);
  const auto rank_of = [](const DcpChunk& c) { return std::stoll(c.file.substr(2)); };
  const auto ranks = [&](const std::string& key) {
    std::set<int64_t> all;
    for (const DcpChunk& c : plan.metadata.tensors.at(key).chunks) all.insert(rank_of(c));
    return all;
  };
  // Expert e of stage s is rank 4 s + e; TP shards are even and odd ranks.
  EXPECT_EQ(ranks("decoder.layers.0.mlp.experts.experts.linear_fc1.weight"),
            (std::set<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(ranks("decoder.layers.3.mlp.experts.experts.linear_fc2.weight"),
            (std::set<int64_t>{4, 5, 6, 7}));
  for (const DcpChunk& c : plan.metadata.tensors.at("embedding.word_embeddings.weight").chunks) {
    EXPECT_EQ(rank_of(c) % 2, c.offsets[0] < 24 ? 0 : 1);
    EXPECT_LT(rank_of(c), 4);
  }
  for (const int64_t bytes : plan.rank_bytes) EXPECT_GT(bytes, 0);
}

TEST_F(SpmdLayoutsTest, OnePassGivesTheBytesOfTwoSteps) {
  const std::string source = make_source();
  prepare_single(ctx_, {.input = source, .output = path("cast")});
  const PrepareSpmdOptions o = options(layouts()[4]);
  prepare_spmd(ctx_, ModelTensors(source, true, ScaleCheck::kFp4WhenDecoded), path("one"), o);
  prepare_spmd(ctx_, ModelTensors(path("cast")), path("two"), o);
  EXPECT_EQ(tensors(path("one")), tensors(path("two")));
}

TEST_F(SpmdLayoutsTest, SeveralProcessesWriteWhatOneWrites) {
  const ModelTensors source(make_source());
  for (const ParallelLayout& layout : {layouts()[0], layouts()[4]}) {
    fs::remove_all(dir_ / "alone");
    fs::remove_all(dir_ / "shared");
    prepare_spmd(ctx_, source, path("alone"), options(layout));
    std::vector<std::thread> processes;
    for (int64_t rank = 0; rank < 3; ++rank) {
      processes.emplace_back([&, rank] {
        ThreadPool threads(1);
        PrepareSpmdOptions o = options(layout);
        o.place = {rank, 3};
        const PrepareSpmdResult result =
            prepare_spmd({&threads, detect_cpu_isa()}, source, path("shared"), o);
        EXPECT_GT(result.num_bytes_written, 0) << rank;
      });
    }
    for (std::thread& t : processes) t.join();
    EXPECT_EQ(file_bytes(path("shared")), file_bytes(path("alone")));
  }
}

TEST_F(SpmdLayoutsTest, OneFailingProcessEndsTheOthersAndFinishedFilesAreKept) {
  const std::string directory = make_source();
  const ModelTensors source(directory);
  prepare_spmd(ctx_, source, path("alone"), options({}));
  const SpmdPlan plan = make_spmd_plan(source, options({}).plan);
  ASSERT_GT(plan.files.size(), 2u);
  // A directory where rank 1's last file should go: that rank cannot finish.
  const fs::path partial = PendingDirectory::resumable_path(path("shared"), "release", plan.id);
  const fs::path obstacle = partial / (plan.files.back().path + ".tmp");
  fs::create_directories(obstacle);
  std::vector<std::string> errors(2);
  std::vector<std::thread> processes;
  for (int64_t rank = 0; rank < 2; ++rank) {
    processes.emplace_back([&, rank] {
      ThreadPool threads(1);
      PrepareSpmdOptions o = options({});
      o.place = {rank, 2};
      try {
        prepare_spmd({&threads, detect_cpu_isa()}, source, path("shared"), o);
      } catch (const UserError& e) {
        errors[static_cast<size_t>(rank)] = e.what();
      }
    });
  }
  for (std::thread& t : processes) t.join();
  EXPECT_NE(errors[1].find("cannot create"), std::string::npos) << errors[1];
  EXPECT_NE(errors[0].find("rank 1 failed: cannot create"), std::string::npos) << errors[0];
  EXPECT_FALSE(fs::exists(path("shared/release")));
  EXPECT_FALSE(fs::exists(tracker_path(path("shared"))));

  fs::remove_all(obstacle);
  const PrepareSpmdResult again = prepare_spmd(ctx_, source, path("shared"), options({}));
  EXPECT_GT(again.num_files_kept, 0);
  EXPECT_LT(again.num_files_kept, again.num_files);
  EXPECT_EQ(file_bytes(path("shared")), file_bytes(path("alone")));
}

TEST_F(SpmdLayoutsTest, AnAbsentProcessIsNamed) {
  const ModelTensors source(make_source());
  PrepareSpmdOptions o = options({});
  o.place = {0, 2};
  o.patience_seconds = 0.3;
  try {
    prepare_spmd(ctx_, source, path("out"), o);
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("rank 1 of 2 has given no sign"), std::string::npos);
  }
}

TEST_F(SpmdLayoutsTest, FinishedFilesOfAKilledRunAreNotWrittenAgain) {
  const ModelTensors source(make_source());
  prepare_spmd(ctx_, source, path("alone"), options({}));
  const SpmdPlan plan = make_spmd_plan(source, options({}).plan);
  // What a kill leaves: a finished file, half of another, and nothing published.
  const fs::path partial = PendingDirectory::resumable_path(path("out"), "release", plan.id);
  fs::create_directories(partial);
  fs::copy_file(dir_ / "alone/release" / plan.files[0].path, partial / plan.files[0].path);
  const auto kept = fs::last_write_time(partial / plan.files[0].path);
  std::ofstream(partial / (plan.files[1].path + ".tmp")) << "half";
  fs::create_directories(dir_ / "out/.release.0123456789abcdef.partial");  // of another source
  const PrepareSpmdResult result = prepare_spmd(ctx_, source, path("out"), options({}));
  EXPECT_EQ(result.num_files_kept, 1);
  EXPECT_EQ(fs::last_write_time(dir_ / "out/release" / plan.files[0].path), kept);
  EXPECT_EQ(file_bytes(path("out")), file_bytes(path("alone")));
}

TEST_F(SpmdLayoutsTest, ALayoutThatDoesNotFitIsAWrongCommandLine) {
  const ModelTensors source(make_source());
  EXPECT_THROW(prepare_spmd(ctx_, source, path("out"), options({.expert = 3})), ConfigError);
  EXPECT_FALSE(fs::exists(path("out")));
}

}  // namespace
}  // namespace fathom
