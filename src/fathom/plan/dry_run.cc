#include "fathom/plan/dry_run.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "fathom/base/error.h"
#include "fathom/parallel/pipeline_schedule.h"
#include "fathom/plan/step_traffic.h"
#include "fathom/plan/traffic.h"

namespace fathom {
namespace {

using dist::Axis;

constexpr Axis kAxes[] = {Axis::kTp,   Axis::kCp,       Axis::kEp, Axis::kEtp,
                          Axis::kDpCp, Axis::kExpertDp, Axis::kPp};

/// The member lists of all groups, one object per group.
class Groups {
 public:
  Groups(const dist::Mesh& mesh, int num_ranks) : of_rank_(static_cast<size_t>(num_ranks)) {
    std::map<std::pair<Axis, std::vector<int>>, const std::vector<int>*> known;
    for (int rank = 0; rank < num_ranks; ++rank) {
      for (Axis axis : kAxes) {
        auto key = std::make_pair(axis, mesh.ranks(rank, axis));
        auto [at, is_new] = known.try_emplace(key, nullptr);
        if (is_new) {
          members_.push_back(std::make_unique<std::vector<int>>(key.second));
          at->second = members_.back().get();
        }
        of_rank_[static_cast<size_t>(rank)][axis] = at->second;
      }
    }
  }
  const std::vector<int>* of(int rank, Axis axis) const {
    return of_rank_[static_cast<size_t>(rank)].at(axis);
  }
  /// Of two ranks and more.
  int64_t count() const {
    return std::count_if(members_.begin(), members_.end(),
                         [](const auto& m) { return m->size() > 1; });
  }
  /// "" when every rank is in its own groups and every group is the same to all members.
  std::string fault() const {
    for (size_t rank = 0; rank < of_rank_.size(); ++rank) {
      for (const auto& [axis, members] : of_rank_[rank]) {
        for (int member : *members) {
          if (of_rank_[static_cast<size_t>(member)].at(axis) == members) continue;
          return str_cat("rank ", rank, " counts rank ", member,
                         " to a group that it is not a member of");
        }
        if (std::find(members->begin(), members->end(), static_cast<int>(rank)) == members->end()) {
          return str_cat("rank ", rank, " is not in its own group");
        }
      }
    }
    return "";
  }

 private:
  std::vector<std::unique_ptr<std::vector<int>>> members_;
  std::vector<std::map<Axis, const std::vector<int>*>> of_rank_;
};

struct StageProgram {
  std::vector<CommOp> forward, backward;  // of one micro-batch
  std::vector<PipelineAction> actions;
};

StageProgram stage_program(const PlanRequest& r, const ShardTable& table, int stage,
                           StepKind kind) {
  const TrafficModel traffic(r);
  const int pp = r.layout.mesh.pp, n = r.num_micro_batches();
  const LayerRange layers = table.stages()[static_cast<size_t>(stage)];
  StageProgram p;
  const auto append = [](std::vector<CommOp>* to, const std::vector<CommOp>& ops) {
    to->insert(to->end(), ops.begin(), ops.end());
  };
  if (stage == 0) append(&p.forward, traffic.embed_forward());
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    append(&p.forward, traffic.layer_forward(r.config.ratio(l)));
  }
  if (stage == pp - 1) {
    append(&p.forward, traffic.head_forward());
    append(&p.backward, traffic.head_backward());
  }
  for (int64_t l = layers.end; l-- > layers.begin;) {
    append(&p.backward, traffic.layer_backward(r.config.ratio(l)));
  }
  if (stage == 0) append(&p.backward, traffic.embed_backward());
  p.actions = kind == StepKind::kTraining ? one_forward_one_backward(pp, stage, n)
                                          : forward_only(pp, stage, n);
  return p;
}

}  // namespace

struct PaperRanks::Parts {
  Parts(const PlanRequest& r, const ShardTable& table, StepKind kind)
      : groups(table.mesh(), r.num_ranks()) {
    const TrafficModel traffic(r);
    stream_bytes = traffic.stream_bytes();
    gradient_bytes = traffic.stream_gradient_bytes();
    for (int s = 0; s < r.layout.mesh.pp; ++s) {
      programs.push_back(stage_program(r, table, s, kind));
    }
    for (int rank = 0; rank < r.num_ranks(); ++rank) {
      at_end.push_back(kind == StepKind::kTraining ? optimizer_ops(r, table, rank)
                                                   : std::vector<CommOp>());
    }
    for (int rank = 0; rank < r.num_ranks(); ++rank) {
      stage_of.push_back(table.mesh().index(rank, Axis::kPp));
    }
  }

  void collective(int rank, const CommOp& op, int64_t id, CommStep* step) const {
    step->members = groups.of(rank, op.axis);
    step->kind = static_cast<int>(op.kind);
    step->id = id;
    step->num_bytes = op.num_bytes;
  }

  void exchange(int rank, const PipelineAction& action, CommStep* step) const {
    const std::vector<int>& pipeline = *groups.of(rank, Axis::kPp);
    for (const PipelineMessage& m : action.messages) {
      const bool streams = m.what == PipelineMessage::What::kStreams;
      step->transfers.push_back(
          {.peer = pipeline[static_cast<size_t>(m.stage)],
           .sends = m.sends,
           .kind = static_cast<int>(streams ? Traffic::kStreams : Traffic::kStreamGradient),
           .id = m.micro_batch,
           .num_bytes = streams ? stream_bytes : gradient_bytes});
    }
  }

  Groups groups;
  int64_t stream_bytes = 0, gradient_bytes = 0;
  std::vector<StageProgram> programs;
  std::vector<std::vector<CommOp>> at_end;  // by rank
  std::vector<int> stage_of;
};

PaperRanks::PaperRanks(const PlanRequest& request, const ShardTable& table, StepKind kind)
    : parts_(std::make_unique<Parts>(request, table, kind)) {}
PaperRanks::~PaperRanks() = default;

std::vector<StepSource> PaperRanks::sources() const {
  std::vector<StepSource> all;
  const Parts* parts = parts_.get();
  for (int rank = 0; rank < static_cast<int>(parts->stage_of.size()); ++rank) {
    const auto r = static_cast<size_t>(rank);
    const StageProgram* program = &parts->programs[static_cast<size_t>(parts->stage_of[r])];
    const std::vector<CommOp>* at_end = &parts->at_end[r];
    all.push_back([=, action = size_t{0}, op = size_t{0}](CommStep* step) mutable {
      while (action < program->actions.size()) {
        const PipelineAction& a = program->actions[action];
        if (a.kind == PipelineAction::Kind::kExchange) {
          parts->exchange(rank, a, step);
          ++action;
          return true;
        }
        const std::vector<CommOp>& ops =
            a.kind == PipelineAction::Kind::kForward ? program->forward : program->backward;
        if (op < ops.size()) {
          parts->collective(rank, ops[op++], a.micro_batch, step);
          return true;
        }
        op = 0;
        ++action;
      }
      if (op == at_end->size()) return false;
      parts->collective(rank, (*at_end)[op++], /*id=*/0, step);
      return true;
    });
  }
  return all;
}

std::vector<PlacedShard> standing_shards(const PlanRequest& request, const ShardTable& table) {
  std::vector<PlacedShard> out;
  for (int rank = 0; rank < request.num_ranks(); ++rank) {
    for (const HeldParameter& h : table.of_rank(rank)) {
      if (h.shard.replica == 0) out.push_back({h.parameter, rank, h.shard});
    }
  }
  return out;
}

std::string tiling_fault(const ShardTable& table, const std::vector<PlacedShard>& shards) {
  std::unordered_map<const Parameter*, std::vector<const PlacedShard*>> by_parameter;
  for (const PlacedShard& s : shards) by_parameter[s.parameter].push_back(&s);
  std::string fault;
  for_each_parameter(table.weights(), [&](const Parameter& p) {
    if (!fault.empty()) return;
    std::vector<const PlacedShard*>& parts = by_parameter[&p];
    std::sort(parts.begin(), parts.end(), [](const PlacedShard* a, const PlacedShard* b) {
      return std::pair(a->shard.begin, a->shard.end) < std::pair(b->shard.begin, b->shard.end);
    });
    int64_t at = 0;
    const PlacedShard* before = nullptr;
    for (const PlacedShard* s : parts) {
      if (before != nullptr && before->shard.axis != s->shard.axis) {
        fault = str_cat(p.name, ": rank ", before->rank, " and rank ", s->rank,
                        " cut it along different axes");
      } else if (s->shard.begin > at) {
        fault = str_cat(p.name, ": no rank stands for [", at, ", ", s->shard.begin, ")");
      } else if (s->shard.begin < at && s->shard.end > s->shard.begin) {
        fault = str_cat(p.name, ": rank ", before->rank, " and rank ", s->rank,
                        " both stand for row ", s->shard.begin);
      }
      if (!fault.empty()) return;
      at = std::max(at, s->shard.end);
      before = s;
    }
    const int axis = before == nullptr || before->shard.whole() ? 0 : before->shard.axis;
    const int64_t size = p.shape[static_cast<size_t>(axis)];
    if (at != size) fault = str_cat(p.name, ": no rank stands for [", at, ", ", size, ")");
  });
  return fault;
}

DryRun dry_run(const PlanRequest& r) {
  const ShardTable table(r);
  DryRun run;
  run.num_ranks = r.num_ranks();
  for_each_parameter(table.weights(), [&](const Parameter& p) {
    ++run.num_parameters;
    run.num_elements += p.numel();
  });
  std::vector<PlacedShard> standing;
  for (int rank = 0; rank < r.num_ranks(); ++rank) {
    for (const HeldParameter& h : table.of_rank(rank)) {
      ++run.num_shards;
      if (h.shard.replica == 0) standing.push_back({h.parameter, rank, h.shard});
    }
  }
  const Groups groups(table.mesh(), r.num_ranks());
  run.num_groups = groups.count();
  for (int s = 0; s < r.layout.mesh.pp; ++s) {
    run.in_flight.push_back(
        max_in_flight(one_forward_one_backward(r.layout.mesh.pp, s, r.num_micro_batches())));
  }
  const auto kind_name = [](int kind) { return traffic_name(static_cast<Traffic>(kind)); };
  const auto simulate = [&](StepKind kind) {
    const PaperRanks ranks(r, table, kind);
    return run_on_paper(ranks.sources(), kind_name);
  };
  run.training = simulate(StepKind::kTraining);
  run.log_probs = simulate(StepKind::kLogProbs);
  for (const std::string& fault :
       {tiling_fault(table, standing), groups.fault(), run.training.fault, run.log_probs.fault}) {
    if (run.fault.empty()) run.fault = fault;
  }
  return run;
}

}  // namespace fathom
