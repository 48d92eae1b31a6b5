#include "fathom/dist/mesh.h"

#include <gtest/gtest.h>

#include <set>

#include "fathom/base/error.h"

namespace fathom::dist {
namespace {

using Ranks = std::vector<int>;

TEST(Mesh, OrderIsTpCpEpDpPp) {
  const Mesh mesh(16, /*tp=*/2, /*cp=*/2, /*ep=*/2, /*etp=*/1, /*pp=*/2);
  EXPECT_EQ(mesh.shape().dp, 2);
  EXPECT_EQ(mesh.shape().expert_dp(), 4);
  EXPECT_EQ(mesh.ranks(5, Axis::kTp), (Ranks{4, 5}));
  EXPECT_EQ(mesh.ranks(5, Axis::kCp), (Ranks{5, 7}));
  EXPECT_EQ(mesh.ranks(5, Axis::kDp), (Ranks{1, 5}));
  EXPECT_EQ(mesh.ranks(5, Axis::kPp), (Ranks{5, 13}));
  EXPECT_EQ(mesh.ranks(5, Axis::kDpCp), (Ranks{1, 3, 5, 7}));
  EXPECT_EQ(mesh.ranks(5, Axis::kEp), (Ranks{4, 5}));
  EXPECT_EQ(mesh.ranks(5, Axis::kExpertDp), (Ranks{1, 3, 5, 7}));
  EXPECT_EQ(mesh.index(5, Axis::kTp), 1);
  EXPECT_EQ(mesh.index(13, Axis::kPp), 1);
}

TEST(Mesh, RecipeLayouts) {
  const Mesh h200(64, 8, 1, 8, 1, 8);
  EXPECT_EQ(h200.shape().dp, 1);
  EXPECT_EQ(h200.shape().expert_dp(), 1);
  const Mesh gb300(32, 2, 2, 4, 1, 8);
  EXPECT_EQ(gb300.shape().dp, 1);
  EXPECT_EQ(gb300.ranks(31, Axis::kEp), (Ranks{28, 29, 30, 31}));
  const Mesh pro(256, 8, 1, 32, 1, 8);
  EXPECT_EQ(pro.shape().dp, 4);
}

TEST(Mesh, GroupsOfAnAxisTileTheRanks) {
  const Mesh mesh(32, 2, 2, 4, 2, 2);
  for (Axis axis : {Axis::kTp, Axis::kCp, Axis::kDp, Axis::kPp, Axis::kEp, Axis::kEtp,
                    Axis::kExpertDp, Axis::kDpCp}) {
    for (int r = 0; r < 32; ++r) {
      const Ranks group = mesh.ranks(r, axis);
      EXPECT_EQ(group[static_cast<size_t>(mesh.index(r, axis))], r);
      for (int other : group) EXPECT_EQ(mesh.ranks(other, axis), group);
      EXPECT_EQ(std::set<int>(group.begin(), group.end()).size(), group.size());
    }
  }
}

TEST(Mesh, RefusesWhatDoesNotDivide) {
  EXPECT_THROW(Mesh(4, 3, 1, 1, 1, 1), ConfigError);
  EXPECT_THROW(Mesh(4, 1, 1, 3, 1, 1), ConfigError);
  EXPECT_THROW(Mesh(8, 2, 1, 8, 1, 2), ConfigError);
}

}  // namespace
}  // namespace fathom::dist
