// All ranks of a layout on paper: their shards, groups, schedules and messages, and one training
// step from the first micro-batch to the moved weights. For finding out on one machine, in seconds,
// what would otherwise hang or fail on hundreds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/parallel/rendezvous.h"
#include "fathom/plan/request.h"
#include "fathom/plan/shard_table.h"

namespace fathom {

/// A shard on a rank.
struct PlacedShard {
  const Parameter* parameter = nullptr;
  int rank = 0;
  Shard shard;
};

/// Those of all ranks that stand for the parameter (replicas 0). They have to tile it.
std::vector<PlacedShard> standing_shards(const PlanRequest& request, const ShardTable& table);

/// What is wrong with the tiling, or "": an element of a parameter that no shard has, or two.
std::string tiling_fault(const ShardTable& table, const std::vector<PlacedShard>& shards);

enum class StepKind { kTraining, kLogProbs };

/// What every rank does in a step, message by message. The object must outlive the sources.
class PaperRanks {
 public:
  PaperRanks(const PlanRequest& request, const ShardTable& table, StepKind kind);
  ~PaperRanks();
  std::vector<StepSource> sources() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

struct DryRun {
  int num_ranks = 0;
  int64_t num_parameters = 0, num_elements = 0;  // of the model
  int64_t num_shards = 0;                        // held, over all ranks, replicas included
  int64_t num_groups = 0;                        // of two ranks and more
  std::vector<int> in_flight;                    // by stage: micro-batches at a time
  RendezvousResult training, log_probs;
  std::string fault;  // empty: all is well
};

/// Errors: ConfigError when the layout does not fit the model.
DryRun dry_run(const PlanRequest& request);

std::string dry_run_table(const PlanRequest& request, const DryRun& run);
Json dry_run_json(const PlanRequest& request, const DryRun& run);

}  // namespace fathom
