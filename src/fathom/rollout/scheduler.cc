#include "fathom/rollout/scheduler.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {

int64_t RunningSample::num_tokens() const {
  return group->prompt_length() + static_cast<int64_t>(completion.token_ids.size());
}

bool RequestGroup::is_finished() const {
  return std::all_of(samples.begin(), samples.end(),
                     [](const RunningSample& s) { return s.finished; });
}

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options) {
  FATHOM_CHECK(options.max_running_requests >= 1, "max_running_requests ",
               options.max_running_requests, ": must be at least 1");
  FATHOM_CHECK(options.chunked_prefill_size >= 1, "chunked_prefill_size ",
               options.chunked_prefill_size, ": must be at least 1 token");
}

void Scheduler::add(RequestGroup* group) { waiting_.push_back(group); }

int64_t Scheduler::num_running() const {
  return static_cast<int64_t>(running_.size() + prefilling_.size());
}

int64_t Scheduler::num_waiting() const {
  return static_cast<int64_t>(waiting_.size() + ready_.size());
}

bool Scheduler::has_work() const { return num_running() + num_waiting() > 0; }

const StepPlan& Scheduler::plan() {
  plan_.decodes.clear();
  plan_.prefills.clear();
  // Samples whose prompt is done come before new prompts: they free memory sooner.
  while (!ready_.empty() && num_running() < options_.max_running_requests) {
    running_.push_back(ready_.front());
    ready_.pop_front();
  }
  plan_.decodes.assign(running_.begin(), running_.end());

  int64_t budget = options_.chunked_prefill_size;
  const auto take_chunk = [&](RequestGroup* group) {
    const int64_t left = group->prompt_length() - group->num_prefilled;
    const int64_t n = std::min(budget, left);
    plan_.prefills.push_back({group, group->num_prefilled, n, n == left});
    budget -= n;
  };
  for (RequestGroup* group : prefilling_) {
    if (budget > 0) take_chunk(group);
  }
  while (budget > 0 && !waiting_.empty() && num_running() < options_.max_running_requests) {
    prefilling_.push_back(waiting_.front());
    waiting_.pop_front();
    take_chunk(prefilling_.back());
  }
  return plan_;
}

void Scheduler::complete_step() {
  for (const PrefillChunk& chunk : plan_.prefills) {
    chunk.group->num_prefilled += chunk.num_tokens;
    if (!chunk.is_last) continue;
    std::erase(prefilling_, chunk.group);
    for (RunningSample& sample : chunk.group->samples) {
      if (!sample.finished) ready_.push_back(&sample);
    }
  }
  std::erase_if(running_, [](const RunningSample* s) { return s->finished; });
  plan_.decodes.clear();
  plan_.prefills.clear();
}

void Scheduler::remove(RequestGroup* group) {
  FATHOM_ASSERT(plan_.empty(), "a step is under way");
  std::erase(waiting_, group);
  std::erase(prefilling_, group);
  std::erase_if(ready_, [&](const RunningSample* s) { return s->group == group; });
  std::erase_if(running_, [&](const RunningSample* s) { return s->group == group; });
}

}  // namespace fathom
