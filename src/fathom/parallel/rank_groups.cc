#include "fathom/parallel/rank_groups.h"

#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "fathom/parallel/stages.h"

namespace fathom {

RankGroups::RankGroups(dist::Group all)
    : everyone(all), dp(all), dp_cp(all), expert_dp(all), engines(all) {
  shape.dp = all.size();
}

RankGroups::RankGroups(const dist::Group& all, const dist::MeshShape& mesh_shape,
                       bool sequence_parallel, int64_t part_multiple)
    : everyone(all) {
  const dist::Mesh mesh(all.size(), mesh_shape.tp, mesh_shape.cp, mesh_shape.ep, mesh_shape.etp,
                        mesh_shape.pp);
  shape = mesh.shape();
  const auto group = [&](dist::Axis axis) { return all.subset(mesh.ranks(all.rank(), axis)); };
  dp = group(dist::Axis::kDp);
  dp_cp = group(dist::Axis::kDpCp);
  expert_dp = group(dist::Axis::kExpertDp);
  stages = group(dist::Axis::kPp);
  layout.tp = group(dist::Axis::kTp);
  layout.cp = group(dist::Axis::kCp);
  layout.ep = group(dist::Axis::kEp);
  layout.etp = group(dist::Axis::kEtp);
  std::vector<int> experts;
  for (int at : mesh.ranks(all.rank(), dist::Axis::kEp)) {
    for (int rank : mesh.ranks(at, dist::Axis::kEtp)) experts.push_back(rank);
  }
  layout.experts = all.subset(experts);
  const int together = std::lcm(shape.tp, shape.ep * shape.etp);
  const int stage = shape.tp * shape.cp * shape.dp;
  std::vector<int> one_of_each;
  for (int rank = all.rank() % together; rank < stage; rank += together) {
    one_of_each.push_back(all.rank() / stage * stage + rank);
  }
  engines = all.subset(one_of_each);
  layout.sequence_parallel = sequence_parallel && shape.tp > 1;
  layout.part_multiple = part_multiple;
}

Layout RankGroups::engine_layout() const {
  Layout out = layout;
  out.cp = dist::Group();
  out.sequence_parallel = false;
  return out;
}

void RankGroups::set_stages(const ModelConfig& config, std::optional<int64_t> first,
                            std::optional<int64_t> last) {
  const int stage = stages.rank();
  const LayerRange layers =
      stage_layers(config, stages.size(), first, last)[static_cast<size_t>(stage)];
  layout.first_layer = layers.begin;
  layout.num_layers = layers.size();
  layout.is_first_stage = stage == 0;
  layout.is_last_stage = stage == stages.size() - 1;
}

bool is_routed_expert(const Parameter& p) { return p.name.find(".experts.") != std::string::npos; }

const dist::Group& RankGroups::replicas(const Parameter& p) const {
  return is_routed_expert(p) ? expert_dp : dp_cp;
}

bool RankGroups::is_first_replica(const Parameter& p) const {
  if (replicas(p).rank() != 0) return false;
  const dist::Group& others = is_routed_expert(p) ? layout.etp : layout.tp;
  return p.is_sharded() || others.rank() == 0;
}

}  // namespace fathom
