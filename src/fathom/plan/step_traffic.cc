#include "fathom/plan/step_traffic.h"

namespace fathom {

using dist::Axis;

int first_rank_of_stage(const PlanRequest& request, int stage) {
  return request.num_ranks() / request.layout.mesh.pp * stage;
}

std::vector<CommOp> optimizer_ops(const PlanRequest& r, const ShardTable& table, int rank) {
  const dist::MeshShape& mesh = r.layout.mesh;
  int64_t dense = 0, experts = 0, replicated = 0, dense_weights = 0, expert_weights = 0;
  for (const HeldParameter& h : table.of_rank(rank)) {
    if (!h.is_trained) continue;
    const int64_t weight = r.machine.is_cpu || r.layout.precision == Precision::kFp32 ? 4 : 2;
    (h.is_expert ? experts : dense) += h.numel * r.gradient_bytes;
    (h.is_expert ? expert_weights : dense_weights) += h.numel * weight;
    if (!h.is_expert && h.shard.whole()) replicated += h.numel * r.gradient_bytes;
  }
  std::vector<CommOp> ops;
  const auto add = [&](Traffic kind, Axis axis, int degree, int64_t num_bytes) {
    if (degree > 1 && num_bytes > 0) ops.push_back({kind, axis, num_bytes});
  };
  // Every member sends the parts that others own; of the weights each owner sends its part to all.
  const auto away = [](int64_t n, int64_t members) { return n / members * (members - 1); };
  const int dp_cp = mesh.dp * mesh.cp, expert_dp = mesh.expert_dp();
  if (r.sequence_parallel) {
    add(Traffic::kReplicatedGradient, Axis::kTp, mesh.tp, 2 * away(replicated, mesh.tp));
  }
  add(Traffic::kGradient, Axis::kDpCp, dp_cp, away(dense, dp_cp));
  add(Traffic::kGradient, Axis::kExpertDp, expert_dp, away(experts, expert_dp));
  add(Traffic::kWeights, Axis::kDpCp, dp_cp, away(dense_weights, dp_cp));
  add(Traffic::kWeights, Axis::kExpertDp, expert_dp, away(expert_weights, expert_dp));
  return ops;
}

std::vector<std::pair<CommOp, int64_t>> step_ops(const PlanRequest& r, const ShardTable& table,
                                                 int rank) {
  const TrafficModel traffic(r);
  const int pp = r.layout.mesh.pp, stage = table.mesh().index(rank, Axis::kPp);
  const int64_t n = r.num_micro_batches();
  std::vector<std::pair<CommOp, int64_t>> out;
  const auto take = [&](const std::vector<CommOp>& ops, int64_t times) {
    for (const CommOp& op : ops) out.emplace_back(op, times);
  };
  if (stage == 0) {
    take(traffic.embed_forward(), n);
    take(traffic.embed_backward(), n);
  }
  const LayerRange layers = table.stages()[static_cast<size_t>(stage)];
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    take(traffic.layer_forward(r.config.ratio(l)), n);
    take(traffic.layer_backward(r.config.ratio(l)), n);
  }
  if (stage == pp - 1) {
    take(traffic.head_forward(), n);
    take(traffic.head_backward(), n);
  } else {
    out.emplace_back(CommOp{Traffic::kStreams, Axis::kPp, traffic.stream_bytes()}, n);
  }
  if (stage > 0) {
    out.emplace_back(CommOp{Traffic::kStreamGradient, Axis::kPp, traffic.stream_gradient_bytes()},
                     n);
  }
  take(optimizer_ops(r, table, rank), 1);
  return out;
}

}  // namespace fathom
