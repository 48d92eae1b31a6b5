// A dry run as a summary and as JSON.
#include <algorithm>
#include <cstdio>

#include "fathom/base/error.h"
#include "fathom/plan/dry_run.h"
#include "fathom/plan/traffic.h"

namespace fathom {
namespace {

struct KindTotal {
  int64_t most_bytes = 0;  // of any rank
  int64_t most_times = 0;
};

KindTotal total_of(const RendezvousResult& result, int kind) {
  KindTotal t;
  for (size_t rank = 0; rank < result.bytes_sent.size(); ++rank) {
    const auto k = static_cast<size_t>(kind);
    t.most_bytes = std::max(t.most_bytes, result.bytes_sent[rank][k]);
    t.most_times = std::max(t.most_times, result.num_sent[rank][k]);
  }
  return t;
}

Json result_json(const RendezvousResult& result) {
  Json kinds = Json::object();
  for (int kind = 0; kind < kNumTrafficKinds; ++kind) {
    const KindTotal t = total_of(result, kind);
    kinds[traffic_name(static_cast<Traffic>(kind))] = {{"most_bytes_of_a_rank", t.most_bytes},
                                                       {"most_messages_of_a_rank", t.most_times}};
  }
  return {{"num_transfers", result.num_transfers},
          {"num_collectives", result.num_collectives},
          {"sent", kinds}};
}

}  // namespace

std::string dry_run_table(const PlanRequest& r, const DryRun& run) {
  std::string text =
      str_cat("dry run of ", r.model_name, ": ", r.layout.mesh.text(), ", ", run.num_ranks,
              " ranks\n", run.num_parameters, " parameters of ", run.num_elements, " elements in ",
              run.num_shards, " shards; ", run.num_groups,
              " groups\nmicro-batches: ", r.num_micro_batches(), ", at a time by stage:");
  for (int n : run.in_flight) text += str_cat(" ", n);
  text += str_cat("\ntraining step: ", run.training.num_transfers, " pipeline messages, ",
                  run.training.num_collectives,
                  " collectives; log-probs alone: ", run.log_probs.num_transfers, " and ",
                  run.log_probs.num_collectives, "\nmost that a rank sends in a training step:\n");
  for (int kind = 0; kind < kNumTrafficKinds; ++kind) {
    const KindTotal t = total_of(run.training, kind);
    if (t.most_times == 0) continue;
    char line[128];
    std::snprintf(line, sizeof line, "  %-20s %8lld messages %12.3f GB\n",
                  traffic_name(static_cast<Traffic>(kind)), static_cast<long long>(t.most_times),
                  static_cast<double>(t.most_bytes) / 1e9);
    text += line;
  }
  return text + (run.fault.empty()
                     ? "every send met its receive, nobody waits for ever, and the shards tile "
                       "every parameter exactly once\n"
                     : "fault: " + run.fault + "\n");
}

Json dry_run_json(const PlanRequest& r, const DryRun& run) {
  return {{"model", r.model_name},
          {"layout", r.layout.mesh.text()},
          {"num_ranks", run.num_ranks},
          {"num_parameters", run.num_parameters},
          {"num_elements", run.num_elements},
          {"num_shards", run.num_shards},
          {"num_groups", run.num_groups},
          {"num_micro_batches", r.num_micro_batches()},
          {"micro_batches_in_flight", run.in_flight},
          {"training", result_json(run.training)},
          {"log_probs", result_json(run.log_probs)},
          {"ok", run.fault.empty()},
          {"fault", run.fault}};
}

}  // namespace fathom
