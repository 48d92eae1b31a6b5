// Ranks of a layout load their parts of a model directory, of torch_dist weights and of a training
// checkpoint: what one rank has loaded, cut.
#include <gtest/gtest.h>

#include <filesystem>

#include "fathom/base/file.h"
#include "fathom/checkpoint/any_weights.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/prepare_spmd.h"
#include "fathom/checkpoint/training_state.h"
#include "fathom/parallel/model_parts.h"
#include "tests/multirank/layouts.h"

namespace fathom {
namespace {

const TestLayout kLayouts[] = {
    {.tp = 2, .ep = 2, .sequence_parallel = true}, {.pp = 2, .tp = 2}, {.dp = 2, .ep = 2}};

/// Every rank of every layout loads `path`; all of them together have what `whole` has.
void expect_parts_of(const Weights& whole, const std::string& path, const std::string& model) {
  for (const TestLayout& layout : kLayouts) {
    SCOPED_TRACE(layout.text() + " from " + path);
    expect_all_well(dist::run_local_ranks(layout.num_ranks(), [&](dist::World& world) {
      ThreadPool pool(1);
      const ExecContext ctx = {&pool, detect_cpu_isa()};
      const RankGroups groups = groups_of(layout, world, whole.config);
      const Weights loaded = load_any_weights(ctx, find_weights(path), model, groups.layout);
      FATHOM_ASSERT(same_masters(loaded, shard_weights(whole, groups.layout)));
      const Weights together = gather_weights(groups, loaded);
      FATHOM_ASSERT(world.rank() != 0 || same_masters(together, whole));
    }));
  }
}

TEST(LayoutCheckpoint, EveryFormatIsLoadedInParts) {
  ThreadPool pool(2);
  const ExecContext ctx = {&pool, detect_cpu_isa()};
  const std::string root = ::testing::TempDir() + "fathom_layout_checkpoint";
  std::filesystem::remove_all(root);
  make_directories(root);
  const std::string model = source_path("tests/golden/small_official/model");
  const Weights whole = load_weights(ctx, model);
  expect_parts_of(whole, model, model);
  prepare_spmd(ctx, ModelTensors(model), root + "/torch_dist");
  expect_parts_of(whole, root + "/torch_dist", model);
  save_training_state(root + "/state", 4, whole, std::vector<MomentsView>{}, Json::object(),
                      std::nullopt);
  expect_parts_of(whole, root + "/state/iter_0000004", model);
}

}  // namespace
}  // namespace fathom
