#include "fathom/parallel/rank_groups.h"

#include "fathom/base/error.h"
#include "fathom/parallel/stages.h"

namespace fathom {

RankGroups make_rank_groups(const dist::Group& everyone, const dist::Mesh& mesh,
                            const ModelConfig& config, const StageOptions& options) {
  using dist::Axis;
  FATHOM_ASSERT(everyone.size() == mesh.shape().size(), everyone.size(), " ranks in a mesh of ",
                mesh.shape().text());
  const auto group = [&](Axis axis) {
    return everyone.subgroup(mesh.ranks(everyone.rank(), axis));
  };
  RankGroups ranks;
  ranks.everyone = everyone;
  ranks.data = group(Axis::kDp);
  ranks.stages = group(Axis::kPp);
  ranks.replicas = group(Axis::kDpCp);
  Layout& layout = ranks.layout;
  layout.tp = group(Axis::kTp);
  layout.cp = group(Axis::kCp);
  layout.ep = group(Axis::kEp);
  layout.etp = group(Axis::kEtp);
  const int num_stages = ranks.stages.size(), stage = ranks.stages.rank();
  const LayerRange layers = stage_layers(config, num_stages, options.first_layers,
                                         options.last_layers)[static_cast<size_t>(stage)];
  layout.first_layer = layers.begin;
  layout.num_layers = layers.size();
  layout.is_first_stage = stage == 0;
  layout.is_last_stage = stage == num_stages - 1;
  return ranks;
}

}  // namespace fathom
