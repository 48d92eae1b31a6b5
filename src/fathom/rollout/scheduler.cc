#include "fathom/rollout/scheduler.h"

#include <algorithm>
#include <tuple>

#include "fathom/base/error.h"

namespace fathom {

int64_t RunningSample::num_tokens() const {
  return group->prompt_length() + static_cast<int64_t>(completion.token_ids.size());
}

bool RequestGroup::is_finished() const {
  return std::all_of(samples.begin(), samples.end(),
                     [](const RunningSample& s) { return s.finished; });
}

std::vector<int32_t> tokens_of(const Work& work) {
  std::vector<int32_t> tokens = work.group->request.prompt_ids;
  if (work.sample == nullptr) return tokens;
  for (const auto* more : {&work.sample->completion.token_ids, &work.sample->drafts}) {
    tokens.insert(tokens.end(), more->begin(), more->end());
  }
  return tokens;
}

bool ByRank::operator()(const Work& a, const Work& b) const {
  const auto rank = [](const Work& w) {
    return std::tuple(w.group->arrival, w.group->id,
                      w.sample == nullptr ? int64_t{-1} : w.sample->completion.sample);
  };
  return rank(a) < rank(b);
}

int64_t SchedulerMemory::tokens_at_start(const Work& work) {
  return work.sample == nullptr ? 0 : work.group->prompt_length();
}

Scheduler::Scheduler(const SchedulerOptions& options, SchedulerMemory* memory)
    : options_(options), memory_(memory) {
  FATHOM_CHECK(options.max_running_requests >= 1, "max_running_requests ",
               options.max_running_requests, ": must be at least 1");
  FATHOM_CHECK(options.chunked_prefill_size >= 1, "chunked_prefill_size ",
               options.chunked_prefill_size, ": must be at least 1 token");
}

SchedulerMemory& Scheduler::memory() { return memory_ == nullptr ? unlimited_ : *memory_; }

void Scheduler::add(RequestGroup* group) {
  group->arrival = num_plans_ - group->request.priority * kStepsPerPriority;
  waiting_.insert({group, nullptr});
}

bool Scheduler::has_work() const { return num_running() + num_waiting() > 0; }

const StepPlan& Scheduler::plan() {
  plan_ = {};
  ++num_plans_;
  int64_t budget = options_.chunked_prefill_size;
  const int64_t num_preemptions = num_preemptions_;
  plan_running(&budget);
  // What was just preempted would come back at once.
  if (num_preemptions_ == num_preemptions) start_waiting(&budget);
  if (plan_.empty() && !waiting_.empty()) force_first(&budget);
  return plan_;
}

int64_t Scheduler::tokens_to_plan(const Work& work, int64_t budget) const {
  if (work.sample == nullptr) {
    return std::min(budget, work.group->prompt_length() - work.group->num_prefilled);
  }
  const int64_t left = work.sample->num_tokens() - work.sample->num_computed;
  return left == 1 ? 1 : std::min(budget, left);
}

void Scheduler::plan_work(const Work& work, int64_t num_tokens, int64_t* budget) {
  if (work.sample == nullptr) {
    const int64_t begin = work.group->num_prefilled;
    plan_.prefills.push_back(
        {work.group, begin, num_tokens, begin + num_tokens == work.group->prompt_length()});
    *budget -= num_tokens;
    return;
  }
  const int64_t begin = work.sample->num_computed;
  if (work.sample->num_tokens() - begin == 1) {
    plan_.decodes.push_back(work.sample);
  } else {
    plan_.recomputes.push_back(
        {work.sample, begin, num_tokens, begin + num_tokens == work.sample->num_tokens()});
    *budget -= num_tokens;
  }
}

void Scheduler::plan_running(int64_t* budget) {
  for (size_t i = 0; i < running_.size();) {
    const Work work = running_[i];
    const int64_t num_tokens = tokens_to_plan(work, *budget);
    if (num_tokens > 0) {
      if (!make_room(work, num_tokens)) continue;  // it left running_
      plan_work(work, num_tokens, budget);
    }
    ++i;
  }
}

/// Takes memory from whatever ranks behind `work` until its next tokens have room. @return false
/// when there was too little, and `work` itself was preempted.
bool Scheduler::make_room(const Work& work, int64_t num_tokens) {
  while (!memory().reserve(work, num_tokens)) {
    const Work last = running_.back();
    const std::vector<RequestGroup*> kept = kept_prompts();
    const bool has_kept = !kept.empty() && !ByRank()({kept.back(), nullptr}, {work.group, nullptr});
    if (last == work && !has_kept) {
      preempt(work);
      return false;
    }
    if (last != work && (!has_kept || ByRank()({kept.back(), nullptr}, {last.group, nullptr}))) {
      preempt(last);
    } else {
      memory().drop({kept.back(), nullptr});
    }
  }
  return true;
}

void Scheduler::start_waiting(int64_t* budget) {
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (num_running() == options_.max_running_requests) return;
    const Work work = *it;
    if (*budget == 0 && memory().needs_prefill(work)) return;
    if (work.sample == nullptr && waits_for_other(*work.group)) {
      ++it;
      continue;
    }
    const std::vector<RequestGroup*> kept = kept_prompts();
    if (!(running_.empty() && kept.empty()) && !memory().may_start(work, running_, kept)) return;
    ++it;  // start() takes the work out of the set
    if (!start(work, budget)) return;
  }
}

/// When nothing can run beside what is kept, the first in rank gets all the memory there is.
void Scheduler::force_first(int64_t* budget) {
  const Work work = *waiting_.begin();
  while (!start(work, budget)) {
    const std::vector<RequestGroup*> kept = kept_prompts();
    FATHOM_ASSERT(!kept.empty(), "request ", work.group->id, " does not fit into memory alone");
    memory().drop({kept.back(), nullptr});
  }
}

/// From waiting to running and into the plan. @return false when there is no memory for it.
bool Scheduler::start(const Work& work, int64_t* budget) {
  const int64_t num_held = memory().start(work);
  if (num_held < 0) return false;
  (work.sample == nullptr ? work.group->num_prefilled : work.sample->num_computed) = num_held;
  const int64_t num_tokens = tokens_to_plan(work, *budget);
  if (!memory().reserve(work, num_tokens)) {
    memory().drop(work);
    return false;
  }
  waiting_.erase(work);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), work, ByRank()), work);
  plan_work(work, num_tokens, budget);
  return true;
}

bool Scheduler::waits_for_other(const RequestGroup& group) {
  return std::any_of(running_.begin(), running_.end(), [&](const Work& other) {
    return other.sample == nullptr && memory().shares_beginning(group, *other.group);
  });
}

void Scheduler::preempt(const Work& work) {
  memory().drop(work);
  (work.sample == nullptr ? work.group->num_prefilled : work.sample->num_computed) = 0;
  if (work.sample != nullptr) {
    ++work.sample->completion.num_preemptions;
    num_preempted_answer_tokens_ += work.sample->num_tokens() - work.group->prompt_length();
  }
  ++num_preemptions_;
  num_preempted_prompt_tokens_ += work.group->prompt_length();
  std::erase(running_, work);
  waiting_.insert(work);
}

std::vector<RequestGroup*> Scheduler::kept_prompts() {
  std::erase_if(prompted_,
                [](const RequestGroup* group) { return group->prompt_state == nullptr; });
  return prompted_;
}

void Scheduler::complete_step() {
  for (const PrefillChunk& chunk : plan_.prefills) {
    RequestGroup* group = chunk.group;
    group->num_prefilled += chunk.num_tokens;
    if (!chunk.is_last) continue;
    group->is_prompted = true;
    std::erase(running_, Work{group, nullptr});
    for (RunningSample& sample : group->samples) {
      if (!sample.finished) waiting_.insert({group, &sample});
    }
    if (!group->is_finished()) {
      const auto by_rank = [](RequestGroup* a, RequestGroup* b) {
        return ByRank()({a, nullptr}, {b, nullptr});
      };
      prompted_.insert(std::upper_bound(prompted_.begin(), prompted_.end(), group, by_rank), group);
    }
  }
  for (RunningSample* sample : plan_.decodes) sample->num_computed = sample->num_tokens() - 1;
  for (const RecomputeChunk& chunk : plan_.recomputes) {
    chunk.sample->num_computed =
        chunk.is_last ? chunk.sample->num_tokens() - 1 : chunk.begin + chunk.num_tokens;
  }
  std::erase_if(running_, [](const Work& w) { return w.sample != nullptr && w.sample->finished; });
  std::erase_if(prompted_, [](const RequestGroup* group) { return group->is_finished(); });
  plan_ = {};
}

void Scheduler::remove(RequestGroup* group) {
  FATHOM_ASSERT(plan_.empty(), "a step is under way");
  const auto of_group = [&](const Work& w) { return w.group == group; };
  std::erase_if(waiting_, of_group);
  std::erase_if(running_, of_group);
  std::erase(prompted_, group);
}

void Scheduler::preempt_all() {
  FATHOM_ASSERT(plan_.empty(), "a step is under way");
  while (!running_.empty()) preempt(running_.back());
  for (RequestGroup* group : kept_prompts()) memory().drop({group, nullptr});
}

}  // namespace fathom
