#include "fathom/plan/shard_table.h"

#include <algorithm>

namespace fathom {
namespace {

dist::Mesh mesh_of(const dist::MeshShape& s) { return {s.size(), s.tp, s.cp, s.ep, s.etp, s.pp}; }

/// Elements with rows padded to whole panels; blocks (the groups of wo_a) are padded each.
int64_t stored_elements(const Parameter& p, const Shard& shard, bool in_panels) {
  const int64_t n = shard.numel(p.shape);
  if (!in_panels || p.kind != ParameterKind::kMatrix || n == 0) return n;
  const std::vector<int64_t> shape = shard.shape(p.shape);
  const int64_t rows_of_block = p.shape[0] / p.panels.num_blocks;
  const int64_t blocks = std::max<int64_t>(1, shape[0] / rows_of_block);
  const int64_t rows = shape[0] / blocks;
  return blocks * ((rows + kPanelRows - 1) / kPanelRows) * kPanelRows * shape[1];
}

}  // namespace

int Dealer::next(int64_t numel) {
  const auto least = std::min_element(load_.begin(), load_.end());
  *least += numel;
  return static_cast<int>(least - load_.begin());
}

ShardTable::ShardTable(const PlanRequest& request)
    : request_(request), mesh_(mesh_of(request.layout.mesh)) {
  const ShardLayout& l = request.layout;
  check_layout(request.config, l);
  stages_ = stage_layers(request.config, l.mesh.pp, l.first_stage_layers, l.last_stage_layers);
  weights_ = make_weights(request.config, l.with_mtp);
  of_stage_.resize(static_cast<size_t>(l.mesh.pp));
  for (const Parameter* p : parameters_by_name(weights_)) {
    of_stage_[static_cast<size_t>(stage_of(request.config, l, p->name))].push_back(p);
  }
  if (l.mesh.pp > 1) {  // its copy, if it has one
    std::vector<const Parameter*>& last = of_stage_.back();
    last.insert(std::lower_bound(
                    last.begin(), last.end(), weights_.embed.name,
                    [](const Parameter* p, const std::string& name) { return p->name < name; }),
                &weights_.embed);
  }
}

bool ShardTable::is_trained(const Parameter& p) const {
  if (!p.has_gradient || (p.name.starts_with("mtp.") && !request_.trains_mtp)) return false;
  return !(request_.freezes_gate && p.name.ends_with(".ffn.gate.weight"));
}

std::vector<HeldParameter> ShardTable::of_rank(int rank) const {
  std::vector<HeldParameter> held;
  const auto stage = static_cast<size_t>(mesh_.index(rank, dist::Axis::kPp));
  for (const Parameter* p : of_stage_[stage]) {
    const Shard shard = shard_of(request_.config, request_.layout, rank, p->name, p->shape);
    if (!shard.held) continue;
    held.push_back({.parameter = p,
                    .shard = shard,
                    .numel = shard.numel(p->shape),
                    .stored = stored_elements(*p, shard, request_.machine.is_cpu),
                    .is_trained = is_trained(*p) && !shard.is_copy,
                    .is_expert = p->name.find(".ffn.experts.") != std::string::npos});
  }
  return held;
}

}  // namespace fathom
