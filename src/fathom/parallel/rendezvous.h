// The messages of many ranks, run on paper: do sends meet receives, and does anybody wait for ever?
//
// The strictest network is assumed: a send is done when its receiver has come to the receive, and a
// collective when all members have come to it. What gets through here gets through on any network.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fathom {

/// One side of a message between two ranks. Both sides must agree on everything but `sends`.
struct Transfer {
  int peer = 0;
  bool sends = false;
  int kind = 0;    // the caller's; below RendezvousResult::kMaxKinds
  int64_t id = 0;  // the caller's, a micro-batch
  int64_t num_bytes = 0;
};

/// What a rank does next: transfers that are under way at once, or one collective.
struct CommStep {
  std::vector<Transfer> transfers;
  /// Of a collective: who takes part. The ranks of one group give the same object.
  const std::vector<int>* members = nullptr;
  int kind = 0;
  int64_t id = 0;
  int64_t num_bytes = 0;  // sent by each member
};

/// Writes the rank's next step; false when it has finished.
using StepSource = std::function<bool(CommStep* step)>;

struct RendezvousResult {
  static constexpr int kMaxKinds = 32;
  std::string fault;  // empty: everything met and everybody finished
  int64_t num_transfers = 0, num_collectives = 0;
  /// [rank][kind] bytes sent, and how many transfers or collectives they were.
  std::vector<std::vector<int64_t>> bytes_sent, num_sent;
};

/// Runs all ranks to their end or to the first fault: two sides that disagree, or a standstill; the
/// fault names the ranks and what they wait for.
/// @param kind_name for the messages of faults.
RendezvousResult run_on_paper(std::vector<StepSource> ranks,
                              const std::function<std::string(int kind)>& kind_name);

}  // namespace fathom
