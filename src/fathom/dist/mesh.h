// Which ranks work together on what. Ranks count with tp fastest, then cp, dp, pp; expert layers
// see the same ranks of a pipeline stage as etp fastest, then ep, expert-dp.
#pragma once

#include <string>
#include <vector>

namespace fathom::dist {

struct MeshShape {
  int tp = 1, cp = 1, dp = 1, pp = 1;  // their product is the number of ranks
  int ep = 1, etp = 1;                 // ep * etp divides tp * cp * dp
  int size() const { return tp * cp * dp * pp; }
  int expert_dp() const { return tp * cp * dp / (ep * etp); }
  std::string text() const;  // "tp2 cp1 ep2 dp1 pp2"
};

/// kDpCp: all that hold the same shard of the dense weights; kExpertDp: the same of the experts.
enum class Axis { kTp, kCp, kDp, kPp, kEp, kEtp, kExpertDp, kDpCp };

class Mesh {
 public:
  /// dp follows from the number of ranks. Errors: ConfigError that names the numbers when the sizes
  /// do not divide it.
  Mesh(int num_ranks, int tp, int cp, int ep, int etp, int pp);
  const MeshShape& shape() const { return shape_; }
  /// Where `rank` stands on an axis.
  int index(int rank, Axis axis) const;
  /// The ranks that differ from `rank` on this axis alone, itself included, ascending on it.
  std::vector<int> ranks(int rank, Axis axis) const;

 private:
  int size(Axis axis) const;
  int stride(Axis axis) const;
  MeshShape shape_;
};

}  // namespace fathom::dist
