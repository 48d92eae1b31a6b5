#include "fathom/dist/mesh.h"

#include "fathom/base/error.h"

namespace fathom::dist {

std::string MeshShape::text() const {
  std::string out = str_cat("tp", tp, " cp", cp, " ep", ep, " dp", dp, " pp", pp);
  return etp == 1 ? out : str_cat(out, " etp", etp);
}

Mesh::Mesh(int num_ranks, int tp, int cp, int ep, int etp, int pp) {
  if (num_ranks % (tp * cp * pp) != 0) {
    throw ConfigError(str_cat("--tensor-model-parallel-size ", tp, " x --context-parallel-size ",
                              cp, " x --pipeline-model-parallel-size ", pp, " does not divide the ",
                              num_ranks, " ranks\n  fix: start a multiple of ", tp * cp * pp,
                              " ranks, or change the layout"));
  }
  shape_ = {.tp = tp, .cp = cp, .dp = num_ranks / (tp * cp * pp), .pp = pp, .ep = ep, .etp = etp};
  const int stage = tp * cp * shape_.dp;
  if (stage % (ep * etp) != 0) {
    throw ConfigError(str_cat("--expert-model-parallel-size ", ep,
                              " x --expert-tensor-parallel-size ", etp, " does not divide the ",
                              stage, " ranks of a pipeline stage (tp ", tp, " x cp ", cp, " x dp ",
                              shape_.dp, ")\n  fix: choose sizes whose product divides it"));
  }
}

int Mesh::size(Axis axis) const {
  switch (axis) {
    case Axis::kTp:
      return shape_.tp;
    case Axis::kCp:
      return shape_.cp;
    case Axis::kDp:
      return shape_.dp;
    case Axis::kPp:
      return shape_.pp;
    case Axis::kEp:
      return shape_.ep;
    case Axis::kEtp:
      return shape_.etp;
    case Axis::kExpertDp:
      return shape_.expert_dp();
    case Axis::kDpCp:
      return shape_.dp * shape_.cp;
  }
  FATHOM_ASSERT(false, "unknown axis");
}

int Mesh::stride(Axis axis) const {
  switch (axis) {
    case Axis::kTp:
    case Axis::kEtp:
      return 1;
    case Axis::kCp:
    case Axis::kDpCp:
      return shape_.tp;
    case Axis::kDp:
      return shape_.tp * shape_.cp;
    case Axis::kPp:
      return shape_.tp * shape_.cp * shape_.dp;
    case Axis::kEp:
      return shape_.etp;
    case Axis::kExpertDp:
      return shape_.etp * shape_.ep;
  }
  FATHOM_ASSERT(false, "unknown axis");
}

int Mesh::index(int rank, Axis axis) const { return rank / stride(axis) % size(axis); }

std::vector<int> Mesh::ranks(int rank, Axis axis) const {
  const int first = rank - index(rank, axis) * stride(axis);
  std::vector<int> out;
  for (int i = 0; i < size(axis); ++i) out.push_back(first + i * stride(axis));
  return out;
}

}  // namespace fathom::dist
