#include "fathom/parallel/rendezvous.h"

#include <map>
#include <utility>

#include "fathom/base/error.h"

namespace fathom {
namespace {

class Paper {
 public:
  Paper(std::vector<StepSource> ranks, const std::function<std::string(int)>& kind_name)
      : sources_(std::move(ranks)), kind_name_(kind_name), states_(sources_.size()) {
    for (auto* table : {&result_.bytes_sent, &result_.num_sent}) {
      table->assign(sources_.size(), std::vector<int64_t>(RendezvousResult::kMaxKinds));
    }
  }

  RendezvousResult run() {
    for (size_t r = 0; r < sources_.size(); ++r) ready_.push_back(static_cast<int>(r));
    while (!ready_.empty() && result_.fault.empty()) {
      const int rank = ready_.back();
      ready_.pop_back();
      advance(rank);
    }
    if (result_.fault.empty()) find_standstill();
    return std::move(result_);
  }

 private:
  struct State {
    CommStep step;  // transfers: those not yet met
    bool finished = false;
  };
  struct Meeting {
    int first = -1;  // who came first
    int arrived = 0;
  };

  State& state(int rank) { return states_[static_cast<size_t>(rank)]; }

  void advance(int rank) {
    State& s = state(rank);
    s.step = {};
    if (!sources_[static_cast<size_t>(rank)](&s.step)) {
      s.finished = true;
    } else if (s.step.members != nullptr) {
      join(rank);
    } else {
      meet(rank);
    }
  }

  void count(int rank, int kind, int64_t num_bytes) {
    FATHOM_ASSERT(0 <= kind && kind < RendezvousResult::kMaxKinds, "kind ", kind);
    const auto r = static_cast<size_t>(rank), k = static_cast<size_t>(kind);
    result_.bytes_sent[r][k] += num_bytes;
    ++result_.num_sent[r][k];
  }

  /// Matches each of the rank's transfers with the other side's, where that is there.
  void meet(int rank) {
    std::vector<Transfer>& mine = state(rank).step.transfers;
    for (size_t i = 0; i < mine.size();) {
      const Transfer m = mine[i];
      FATHOM_ASSERT(m.peer >= 0 && m.peer < static_cast<int>(states_.size()) && m.peer != rank,
                    "rank ", rank, " has a transfer with rank ", m.peer);
      std::vector<Transfer>& theirs = state(m.peer).step.transfers;
      size_t other = 0;
      while (other < theirs.size() &&
             (theirs[other].peer != rank || theirs[other].sends == m.sends)) {
        ++other;
      }
      if (other == theirs.size()) {
        ++i;
        continue;
      }
      const Transfer& t = theirs[other];
      if (t.kind != m.kind || t.id != m.id || t.num_bytes != m.num_bytes) {
        result_.fault = str_cat(text(rank, m), ", but ", text(m.peer, t));
        return;
      }
      count(m.sends ? rank : m.peer, m.kind, m.num_bytes);
      ++result_.num_transfers;
      theirs.erase(theirs.begin() + static_cast<std::ptrdiff_t>(other));
      mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(i));
      if (theirs.empty()) ready_.push_back(m.peer);
    }
    if (mine.empty()) ready_.push_back(rank);
  }

  void join(int rank) {
    const CommStep& mine = state(rank).step;
    Meeting& meeting = meetings_[mine.members];
    if (meeting.arrived == 0) meeting.first = rank;
    const CommStep& first = state(meeting.first).step;
    if (first.kind != mine.kind || first.id != mine.id || first.num_bytes != mine.num_bytes) {
      result_.fault = str_cat(text(rank, mine), ", but ", text(meeting.first, first));
      return;
    }
    if (++meeting.arrived < static_cast<int>(mine.members->size())) return;
    ++result_.num_collectives;
    meeting.arrived = 0;
    for (int member : *mine.members) {
      count(member, mine.kind, mine.num_bytes);
      ready_.push_back(member);
    }
  }

  void find_standstill() {
    int waiting = 0;
    for (size_t r = 0; r < states_.size(); ++r) {
      const State& s = states_[r];
      if (s.finished) continue;
      if (++waiting > 4) continue;
      const int rank = static_cast<int>(r);
      result_.fault += str_cat(
          result_.fault.empty() ? "standstill: " : "; ",
          s.step.members != nullptr ? text(rank, s.step) : text(rank, s.step.transfers.front()));
    }
    if (waiting > 4) result_.fault += str_cat("; and ", waiting - 4, " ranks more");
  }

  std::string text(int rank, const Transfer& t) const {
    return str_cat("rank ", rank, t.sends ? " sends rank " : " awaits from rank ", t.peer, " ",
                   kind_name_(t.kind), " ", t.id, " of ", t.num_bytes, " bytes");
  }
  std::string text(int rank, const CommStep& s) const {
    return str_cat("rank ", rank, " is in ", kind_name_(s.kind), " ", s.id, " of ",
                   s.members->size(), " ranks and ", s.num_bytes, " bytes");
  }

  std::vector<StepSource> sources_;
  const std::function<std::string(int)>& kind_name_;
  std::vector<State> states_;
  std::map<const std::vector<int>*, Meeting> meetings_;
  std::vector<int> ready_;
  RendezvousResult result_;
};

}  // namespace

RendezvousResult run_on_paper(std::vector<StepSource> ranks,
                              const std::function<std::string(int kind)>& kind_name) {
  return Paper(std::move(ranks), kind_name).run();
}

}  // namespace fathom
