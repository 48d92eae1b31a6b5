#include "fathom/rollout/state_memory.h"

#include <algorithm>
#include <set>
#include <utility>

#include "fathom/base/error.h"

namespace fathom {
namespace {

// The estimate, as in SGLang: at most so many tokens are set aside for a sample, times a share that
// falls over kDecaySteps steps.
constexpr int64_t kMaxExpectedTokens = 4096;
constexpr double kFirstShare = 0.7, kLeastShare = 0.14;
constexpr double kDecaySteps = 600.0;
// After a preemption: so many steps more for everything that runs.
constexpr int64_t kStepsAfterPreemption = 20;

}  // namespace

StateMemory::StateMemory(std::shared_ptr<StateSpace> space, const ReplayRecord& empty_replay,
                         const StateMemoryOptions& options)
    : space_(std::move(space)),
      empty_replay_(empty_replay),
      options_(options),
      cache_(space_, options.max_cached_pages),
      share_(kFirstShare) {}

int64_t StateMemory::max_cached(const Request& request) {
  // The last token is computed again, for its logits; so is whatever log-probs are asked of.
  const int64_t last = static_cast<int64_t>(request.prompt_ids.size()) - 1;
  return request.prompt_log_probs_from < 0 ? last : std::min(last, request.prompt_log_probs_from);
}

std::unique_ptr<SequenceState> StateMemory::make_state(std::span<const int32_t> tokens,
                                                       int64_t max_cached_tokens,
                                                       ReplayRecord* replay) {
  do {
    std::unique_ptr<SequenceState> state;
    if (options_.use_prefix_cache) state = cache_.resume(tokens, max_cached_tokens, replay);
    if (state == nullptr) state = SequenceState::create(space_);
    if (state != nullptr) return state;
  } while (cache_.evict_one());
  return nullptr;
}

int64_t StateMemory::start(const Work& work) {
  if (work.sample != nullptr) return start_sample(work.sample);
  RequestGroup& group = *work.group;
  group.prompt_replay = empty_replay_;
  group.prompt_state = make_state(group.request.prompt_ids, max_cached(group.request),
                                  group.request.record_replay ? &group.prompt_replay : nullptr);
  if (group.prompt_state == nullptr) return -1;
  group.num_cached_tokens = group.prompt_state->num_tokens();
  return group.num_cached_tokens;
}

int64_t StateMemory::start_sample(RunningSample* sample) {
  RequestGroup& group = *sample->group;
  if (group.prompt_state != nullptr) {
    const bool is_last =
        std::none_of(group.samples.begin(), group.samples.end(), [&](const RunningSample& other) {
          return &other != sample && !other.finished && other.state == nullptr;
        });
    if (is_last) {
      sample->state = std::move(group.prompt_state);
      sample->shares_prompt_pages = true;
      return sample->state->num_tokens();
    }
    do {
      sample->state = group.prompt_state->fork();
    } while (sample->state == nullptr && cache_.evict_one());
    sample->shares_prompt_pages = true;
  } else {
    // Routes and picks of tokens that were computed before are in the completion already.
    sample->state = make_state(tokens_of({&group, sample}), sample->num_tokens() - 1, nullptr);
    sample->shares_prompt_pages = false;
  }
  return sample->state == nullptr ? -1 : sample->state->num_tokens();
}

bool StateMemory::reserve(const Work& work, int64_t num_tokens) {
  return reserve_more(
      work.sample == nullptr ? work.group->prompt_state.get() : work.sample->state.get(),
      num_tokens);
}

bool StateMemory::reserve_more(SequenceState* state, int64_t num_tokens) {
  while (!state->reserve(num_tokens)) {
    if (!cache_.evict_one()) return false;
  }
  return true;
}

StateBlock StateMemory::spare_block() {
  while (true) {
    StateBlock block = acquire_state_block(*space_);
    if (block || !cache_.evict_one()) return block;
  }
}

StateBlock StateMemory::spare_copy(const StateBlock& source) {
  const StateBlock block = spare_block();
  if (block) copy_state_block(*space_, source, block);
  return block;
}

void StateMemory::drop(const Work& work) {
  if (work.sample != nullptr) {
    work.sample->state.reset();
    return;
  }
  RequestGroup& group = *work.group;
  group.prompt_state.reset();
  if (group.is_prompted) return;
  group.prompt_replay = {};
  group.prompt_log_probs.clear();
  group.prompt_lists = {};
}

bool StateMemory::needs_prefill(const Work& work) const {
  return work.sample == nullptr || work.group->prompt_state == nullptr ||
         work.sample->completion.token_ids.size() > 1;
}

int64_t StateMemory::expected_tokens(const RequestGroup& group, int64_t num_generated,
                                     double share) const {
  const int64_t left = group.request.sampling.max_new_tokens - num_generated;
  const int64_t set_aside =
      options_.admission == Admission::kWorstCase
          ? left
          : static_cast<int64_t>(static_cast<double>(std::min(left, kMaxExpectedTokens)) * share);
  return std::min(options_.max_positions, group.prompt_length() + num_generated + set_aside);
}

/// Of a sample that has drawn so many tokens, without the prompt's full pages.
int64_t StateMemory::sample_bytes(const RequestGroup& group, int64_t num_generated) const {
  const StateLayout& layout = space_->layout;
  return layout.fixed_bytes() +
         layout.history_bytes(expected_tokens(group, num_generated, share_)) -
         prompt_page_bytes(group);
}

int64_t StateMemory::prompt_page_bytes(const RequestGroup& group) const {
  const StateLayout& layout = space_->layout;
  return group.prompt_length() / layout.page_size * layout.page_bytes();
}

int64_t StateMemory::worst_case_bytes(const Request& request) const {
  const int64_t length = static_cast<int64_t>(request.prompt_ids.size());
  return space_->layout.fixed_bytes() +
         space_->layout.history_bytes(
             std::min(options_.max_positions, length + request.sampling.max_new_tokens));
}

bool StateMemory::may_start(const Work& work, const std::vector<Work>& running,
                            const std::vector<RequestGroup*>& kept) {
  const int64_t budget = space_->pools.budget_bytes();
  if (budget == 0) return true;
  const StateLayout& layout = space_->layout;
  int64_t total = 0;
  std::set<const RequestGroup*> counted;
  const auto add_shared = [&](const RequestGroup& group) {
    if (counted.insert(&group).second) total += prompt_page_bytes(group);
  };
  const auto add_prompt = [&](const RequestGroup& group) {
    add_shared(group);
    total += layout.fixed_bytes() + layout.history_bytes(group.prompt_length()) -
             prompt_page_bytes(group);
  };
  const auto add = [&](const Work& w) {
    if (w.sample != nullptr) {
      // Computed again from its tokens, a sample has pages of its own; the cache may have lent it
      // some, but others need not get the same.
      const bool runs = w.sample->state != nullptr;
      const bool shares = runs ? w.sample->shares_prompt_pages : w.group->prompt_state != nullptr;
      if (shares) {
        add_shared(*w.group);
      } else {
        total += prompt_page_bytes(*w.group);
      }
      total += sample_bytes(*w.group, static_cast<int64_t>(w.sample->completion.token_ids.size()));
    } else {
      // With its first sample, or prompts alone could fill the memory.
      add_prompt(*w.group);
      total += sample_bytes(*w.group, 0);
    }
  };
  for (const Work& w : running) add(w);
  // Of a kept prompt too, one sample must be able to run: it may be the one that starts here.
  for (const RequestGroup* group : kept) {
    add_prompt(*group);
    const bool one_runs = std::any_of(running.begin(), running.end(), [&](const Work& w) {
      return w.group == group && w.sample != nullptr;
    });
    if (!one_runs && group != work.group) total += sample_bytes(*group, 1);
  }
  add(work);
  return total <= budget;
}

bool StateMemory::shares_beginning(const RequestGroup& group, const RequestGroup& prefilling) {
  if (!options_.use_prefix_cache) return false;
  const std::vector<int32_t>& a = group.request.prompt_ids;
  const std::vector<int32_t>& b = prefilling.request.prompt_ids;
  const auto limit = [](const Request& r) { return static_cast<size_t>(max_cached(r)); };
  size_t same = 0;
  const size_t end = std::min(limit(group.request), b.size());
  while (same < end && a[same] == b[same]) ++same;
  // Only a prompt that records its routes leaves them in the cache.
  if (group.request.record_replay && !prefilling.request.record_replay) return false;
  const int64_t page = space_->layout.page_size;
  const int64_t shared = static_cast<int64_t>(same) / page * page;
  return shared > cache_.cached_tokens(a, max_cached(group.request), group.request.record_replay);
}

void StateMemory::note_step(int64_t num_preemptions, const std::vector<Work>& running) {
  if (num_preemptions == 0) {
    share_ = std::max(kLeastShare, share_ - (kFirstShare - kLeastShare) / kDecaySteps);
    return;
  }
  double drawn = 0.0, allowed = 1.0;
  for (const Work& w : running) {
    if (w.sample == nullptr) continue;
    drawn += static_cast<double>(static_cast<int64_t>(w.sample->completion.token_ids.size()) +
                                 kStepsAfterPreemption);
    allowed += static_cast<double>(w.group->request.sampling.max_new_tokens);
  }
  share_ = std::max(share_, std::min(1.0, drawn / allowed));
}

}  // namespace fathom
