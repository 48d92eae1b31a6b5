#include "fathom/rollout/scheduler.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "fathom/base/error.h"

namespace fathom {
namespace {

/// Owns groups and plays the engine: every sample ends after `answer_length` tokens.
class Queue {
 public:
  explicit Queue(const SchedulerOptions& options) : scheduler(options) {}

  RequestGroup* add(int64_t prompt_length, int64_t num_samples = 1) {
    auto group = std::make_unique<RequestGroup>();
    group->id = static_cast<int64_t>(groups.size());
    group->request.prompt_ids.resize(static_cast<size_t>(prompt_length));
    group->samples.resize(static_cast<size_t>(num_samples));
    for (size_t i = 0; i < group->samples.size(); ++i) {
      group->samples[i].group = group.get();
      group->samples[i].completion.sample = static_cast<int64_t>(i);
    }
    groups.push_back(std::move(group));
    scheduler.add(groups.back().get());
    return groups.back().get();
  }

  /// One step as text: "d0.1" decodes sample 1 of group 0, "p2[4,8)" prefills, "!" ends a prompt.
  std::string step(int64_t answer_length) {
    std::string out;
    const StepPlan& plan = scheduler.plan();
    const auto add_token = [&](RunningSample& sample) {
      sample.completion.token_ids.push_back(0);
      sample.finished = static_cast<int64_t>(sample.completion.token_ids.size()) >= answer_length;
    };
    for (RunningSample* sample : plan.decodes) {
      out +=
          str_cat(out.empty() ? "" : " ", "d", sample->group->id, ".", sample->completion.sample);
      EXPECT_FALSE(sample->finished);
      add_token(*sample);
    }
    for (const PrefillChunk& chunk : plan.prefills) {
      out += str_cat(out.empty() ? "" : " ", "p", chunk.group->id, "[", chunk.begin, ",",
                     chunk.begin + chunk.num_tokens, ")", chunk.is_last ? "!" : "");
      if (!chunk.is_last) continue;
      for (RunningSample& sample : chunk.group->samples) add_token(sample);
    }
    scheduler.complete_step();
    return out;
  }

  Scheduler scheduler;
  std::vector<std::unique_ptr<RequestGroup>> groups;
};

TEST(SchedulerTest, PromptsArePrefilledInChunksBesideDecoding) {
  Queue queue({.max_running_requests = 4, .chunked_prefill_size = 8});
  queue.add(5);
  queue.add(12);
  queue.add(4);
  EXPECT_EQ(queue.step(3), "p0[0,5)! p1[0,3)");
  EXPECT_EQ(queue.step(3), "d0.0 p1[3,11)");
  EXPECT_EQ(queue.step(3), "d0.0 p1[11,12)! p2[0,4)!");
  EXPECT_EQ(queue.step(3), "d1.0 d2.0");
  EXPECT_EQ(queue.step(3), "d1.0 d2.0");
  EXPECT_EQ(queue.step(3), "");
  EXPECT_FALSE(queue.scheduler.has_work());
}

TEST(SchedulerTest, SamplesOfAPromptShareOnePrefill) {
  Queue queue({.max_running_requests = 8, .chunked_prefill_size = 64});
  queue.add(6, 3);
  EXPECT_EQ(queue.step(3), "p0[0,6)!");
  EXPECT_EQ(queue.step(3), "d0.0 d0.1 d0.2");
  EXPECT_EQ(queue.step(3), "d0.0 d0.1 d0.2");
  EXPECT_EQ(queue.step(3), "");
}

TEST(SchedulerTest, NoMoreRunThanAllowedAndWaitingSamplesComeBeforeNewPrompts) {
  Queue queue({.max_running_requests = 2, .chunked_prefill_size = 64});
  queue.add(4, 3);
  queue.add(4, 1);
  EXPECT_EQ(queue.step(2), "p0[0,4)! p1[0,4)!");
  EXPECT_EQ(queue.scheduler.num_waiting(), 4);
  EXPECT_EQ(queue.step(2), "d0.0 d0.1");
  EXPECT_EQ(queue.step(2), "d0.2 d1.0");
  EXPECT_EQ(queue.step(2), "");
  Queue one({.max_running_requests = 1, .chunked_prefill_size = 64});
  one.add(4, 2);
  one.add(4, 1);
  EXPECT_EQ(one.step(2), "p0[0,4)!");
  EXPECT_EQ(one.step(2), "d0.0");
  EXPECT_EQ(one.step(2), "d0.1");
  EXPECT_EQ(one.step(2), "p1[0,4)!");
  EXPECT_EQ(one.step(2), "d1.0");
  EXPECT_EQ(one.step(2), "");
}

TEST(SchedulerTest, AnAnswerOfOneTokenNeverTakesASlot) {
  Queue queue({.max_running_requests = 1, .chunked_prefill_size = 2});
  queue.add(3, 2);
  EXPECT_EQ(queue.step(1), "p0[0,2)");
  EXPECT_EQ(queue.step(1), "p0[2,3)!");
  EXPECT_EQ(queue.scheduler.num_running(), 0);
  EXPECT_FALSE(queue.scheduler.has_work());
}

TEST(SchedulerTest, ARemovedGroupLeavesEveryQueue) {
  Queue queue({.max_running_requests = 3, .chunked_prefill_size = 8});
  RequestGroup* running = queue.add(4, 4);
  RequestGroup* prefilling = queue.add(40);
  RequestGroup* waiting = queue.add(4);
  EXPECT_EQ(queue.step(9), "p0[0,4)! p1[0,4)");
  EXPECT_EQ(queue.step(9), "d0.0 d0.1 p1[4,12)");
  queue.scheduler.remove(running);
  EXPECT_EQ(queue.scheduler.num_running(), 1);
  queue.scheduler.remove(prefilling);
  EXPECT_EQ(queue.step(9), "p2[0,4)!");
  queue.scheduler.remove(waiting);
  EXPECT_FALSE(queue.scheduler.has_work());
  EXPECT_EQ(queue.step(9), "");
}

TEST(SchedulerTest, EveryTokenIsComputedOnceForAnyLimits) {
  for (const int64_t max_running : {1, 2, 3, 16}) {
    for (const int64_t chunk : {1, 3, 7, 1000}) {
      Queue queue({.max_running_requests = max_running, .chunked_prefill_size = chunk});
      for (int64_t i = 0; i < 10; ++i) queue.add(1 + i * 3 % 11, 1 + i % 3);
      std::vector<int64_t> prefilled(10);
      int64_t num_steps = 0;
      std::vector<int64_t> decoded(10);
      while (queue.scheduler.has_work()) {
        ASSERT_LT(++num_steps, 1000) << "no progress";
        const StepPlan& plan = queue.scheduler.plan();
        ASSERT_FALSE(plan.empty());
        int64_t tokens = 0;
        for (const PrefillChunk& c : plan.prefills) {
          EXPECT_EQ(c.begin, prefilled[static_cast<size_t>(c.group->id)]);
          prefilled[static_cast<size_t>(c.group->id)] += c.num_tokens;
          tokens += c.num_tokens;
        }
        EXPECT_LE(tokens, chunk);
        EXPECT_LE(queue.scheduler.num_running(), max_running);
        for (RunningSample* sample : plan.decodes) {
          ++decoded[static_cast<size_t>(sample->group->id)];
          sample->finished = true;
        }
        queue.scheduler.complete_step();
      }
      for (size_t i = 0; i < 10; ++i) {
        EXPECT_EQ(prefilled[i], queue.groups[i]->prompt_length());
        EXPECT_EQ(decoded[i], static_cast<int64_t>(queue.groups[i]->samples.size()));
      }
    }
  }
}

TEST(SchedulerTest, LimitsBelowOneAreErrors) {
  EXPECT_THROW(Scheduler({.max_running_requests = 0, .chunked_prefill_size = 1}), UserError);
  EXPECT_THROW(Scheduler({.max_running_requests = 1, .chunked_prefill_size = 0}), UserError);
}

}  // namespace
}  // namespace fathom
