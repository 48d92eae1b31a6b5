#include "fathom/parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include "fathom/parallel/rendezvous.h"

namespace fathom {
namespace {

using Kind = PipelineAction::Kind;
using Schedules = std::vector<std::vector<PipelineAction>>;
using Make = std::vector<PipelineAction> (*)(int, int, int);

Schedules all_stages(Make make, int num_stages, int num_micro_batches) {
  Schedules out;
  for (int s = 0; s < num_stages; ++s) out.push_back(make(num_stages, s, num_micro_batches));
  return out;
}

StepSource messages_of(const std::vector<PipelineAction>& actions) {
  return [&actions, at = size_t{0}](CommStep* step) mutable {
    for (; at < actions.size(); ++at) {
      if (actions[at].kind != Kind::kExchange) continue;
      for (const PipelineMessage& m : actions[at].messages) {
        step->transfers.push_back({m.stage, m.sends, static_cast<int>(m.what), m.micro_batch, 8});
      }
      ++at;
      return true;
    }
    return false;
  };
}

RendezvousResult run(const Schedules& schedules) {
  std::vector<StepSource> ranks;
  for (const auto& actions : schedules) ranks.push_back(messages_of(actions));
  return run_on_paper(std::move(ranks),
                      [](int kind) { return kind == 0 ? "streams" : "gradient"; });
}

TEST(PipelineSchedule, EveryMicroBatchGoesForwardAndBackwardInOrderAndEverySendMeetsItsReceive) {
  for (int stages : {1, 2, 3, 4, 8, 16}) {
    for (int n : {0, 1, 2, 3, 4, 7, 8, 9, 33}) {
      const Schedules schedules = all_stages(one_forward_one_backward, stages, n);
      const RendezvousResult result = run(schedules);
      EXPECT_EQ(result.fault, "") << stages << " stages, " << n;
      EXPECT_EQ(result.num_transfers, 2 * n * (stages - 1));
      for (int s = 0; s < stages; ++s) {
        int forward = 0, backward = 0;
        for (const PipelineAction& a : schedules[static_cast<size_t>(s)]) {
          if (a.kind == Kind::kForward) {
            EXPECT_EQ(a.micro_batch, forward++);
          }
          if (a.kind == Kind::kBackward) {
            EXPECT_EQ(a.micro_batch, backward++);
            EXPECT_LE(backward, forward);
          }
        }
        EXPECT_EQ(forward, n);
        EXPECT_EQ(backward, n);
        EXPECT_EQ(max_in_flight(schedules[static_cast<size_t>(s)]), std::min(n, stages - s));
      }
    }
  }
}

TEST(PipelineSchedule, AStageComputesOnlyWhatItHasReceived) {
  for (int s = 0; s < 4; ++s) {
    int streams = 0, gradients = 0;
    for (const PipelineAction& a : one_forward_one_backward(4, s, 6)) {
      for (const PipelineMessage& m : a.messages) {
        EXPECT_EQ(m.stage, m.sends == (m.what == PipelineMessage::What::kStreams) ? s + 1 : s - 1);
        if (m.sends) continue;
        int& seen = m.what == PipelineMessage::What::kStreams ? streams : gradients;
        EXPECT_EQ(m.micro_batch, seen++);
      }
      if (a.kind == Kind::kForward && s > 0) {
        EXPECT_LT(a.micro_batch, streams);
      }
      if (a.kind == Kind::kBackward && s < 3) {
        EXPECT_LT(a.micro_batch, gradients);
      }
    }
  }
}

TEST(PipelineSchedule, TwoStagesAsText) {
  std::string first, second;
  for (const auto& a : one_forward_one_backward(2, 0, 2)) first += a.text() + "\n";
  for (const auto& a : one_forward_one_backward(2, 1, 2)) second += a.text() + "\n";
  EXPECT_EQ(first,
            "forward 0\nsend streams 0 to 1\nforward 1\n"
            "send streams 1 to 1, receive gradient 0 from 1\nbackward 0\n"
            "receive gradient 1 from 1\nbackward 1\n");
  EXPECT_EQ(second,
            "receive streams 0 from 0\nforward 0\nbackward 0\n"
            "send gradient 0 to 0, receive streams 1 from 0\nforward 1\nbackward 1\n"
            "send gradient 1 to 0\n");
}

TEST(PipelineSchedule, ForwardOnlyMeetsToo) {
  for (int stages : {1, 2, 5}) {
    const RendezvousResult result = run(all_stages(forward_only, stages, 6));
    EXPECT_EQ(result.fault, "");
    EXPECT_EQ(result.num_transfers, 6 * (stages - 1));
  }
}

TEST(PipelineSchedule, PlantedFaultsAreFound) {
  const Schedules good = all_stages(one_forward_one_backward, 4, 6);
  for (size_t s = 0; s < good.size(); ++s) {
    for (size_t i = 0; i < good[s].size(); ++i) {
      if (good[s][i].kind != Kind::kExchange) continue;
      Schedules bad = good;
      bad[s][i].messages.pop_back();  // one message is forgotten
      if (bad[s][i].messages.empty()) bad[s].erase(bad[s].begin() + static_cast<std::ptrdiff_t>(i));
      EXPECT_NE(run(bad).fault, "") << "stage " << s << ", action " << i;
    }
  }
  // Two exchanges that wait for each other when they are not one.
  Schedules split = good;
  for (auto& actions : split) {
    for (size_t i = 0; i < actions.size(); ++i) {
      if (actions[i].messages.size() != 2) continue;
      PipelineAction second = actions[i];
      second.messages.erase(second.messages.begin());
      actions[i].messages.pop_back();
      actions.insert(actions.begin() + static_cast<std::ptrdiff_t>(i) + 1, second);
    }
  }
  EXPECT_NE(run(split).fault.find("standstill"), std::string::npos) << run(split).fault;
}

TEST(Rendezvous, CollectivesMeetWhereAllMembersAgree) {
  const std::vector<int> all = {0, 1, 2}, two = {0, 1};
  const auto rank = [&](int self, int64_t bytes, bool skips) {
    return [=, &all, &two, at = 0](CommStep* step) mutable {
      const int i = at++;
      if (i == 0 && self < 2 && !skips) {
        step->members = &two;
        step->num_bytes = 4;
        return true;
      }
      if (i > 1) return false;
      at = 2;
      step->members = &all;
      step->num_bytes = bytes;
      step->kind = 1;
      return true;
    };
  };
  const auto name = [](int kind) { return kind == 0 ? "gather" : "sum"; };
  const auto run_ranks = [&](int64_t last_bytes, bool skips) {
    return run_on_paper({rank(0, 16, false), rank(1, 16, skips), rank(2, last_bytes, false)}, name);
  };
  const RendezvousResult good = run_ranks(16, false);
  EXPECT_EQ(good.fault, "");
  EXPECT_EQ(good.num_collectives, 2);
  EXPECT_EQ(good.bytes_sent[0][0], 4);
  EXPECT_EQ(good.bytes_sent[2][0], 0);
  EXPECT_EQ(good.bytes_sent[2][1], 16);
  EXPECT_NE(run_ranks(17, false).fault.find("sum 0 of 3 ranks and 1"), std::string::npos);
  EXPECT_NE(run_ranks(16, true).fault.find("standstill: rank 0 is in gather 0 of 2 ranks"),
            std::string::npos)
      << run_ranks(16, true).fault;
}

}  // namespace
}  // namespace fathom
