#include "fathom/rollout/engine.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

// How many pages the prefix cache keeps when the memory for states has no limit.
constexpr int64_t kCachedPagesWithoutBudget = 4096;
constexpr int64_t kMaxPriority = 1000000;

ReplayRecord empty_replay(const ModelConfig& c) {
  ReplayRecord record;
  record.num_layers = c.num_hidden_layers;
  record.num_slots = c.num_experts_per_tok;
  record.num_indexer_layers = c.num_indexer_layers();
  record.index_topk = c.index_topk;
  return record;
}

/// On a device, states take at most a share of what is free there beside the weights.
EngineOptions fit_to_device(const ExecContext& ctx, EngineOptions options) {
  constexpr double kShareOfFree = 0.8;
  if (ctx.device == nullptr) return options;
  const int64_t most =
      static_cast<int64_t>(kShareOfFree * static_cast<double>(ctx.device->memory_use().free_bytes));
  options.state_bytes = options.state_bytes == 0 ? most : std::min(options.state_bytes, most);
  return options;
}

}  // namespace

int64_t default_page_size(const ModelConfig& config) {
  int64_t multiple = 1;
  for (const int64_t ratio : config.compress_ratios) {
    if (ratio > 0) multiple = std::lcm(multiple, ratio);
  }
  const int64_t least = 16 % multiple == 0 ? 16 : 256;
  return (least + multiple - 1) / multiple * multiple;
}

Engine::Engine(const ExecContext& ctx, const Weights& weights, const EngineOptions& options)
    : Engine(ctx, weights.config, std::make_unique<WeightsModel>(ctx, weights), options) {}

Engine::Engine(const ExecContext& ctx, const ModelConfig& config, std::unique_ptr<StepModel> model,
               const EngineOptions& options)
    : ctx_(ctx),
      config_(config),
      options_(fit_to_device(ctx, options)),
      model_(std::move(model)),
      space_(std::make_shared<StateSpace>(
          config, options.page_size == 0 ? default_page_size(config) : options.page_size,
          /*with_mtp=*/options.num_draft_tokens > 0, options_.state_bytes, model_->precision(),
          ctx.device)),
      memory_(space_, empty_replay(config),
              {.use_prefix_cache = options.prefix_cache,
               .admission = options.admission,
               .max_positions = config.max_position_embeddings,
               .max_cached_pages = options_.state_bytes == 0 ? kCachedPagesWithoutBudget : 0}),
      scheduler_({options.max_running_requests, options.chunked_prefill_size}, &memory_) {
  FATHOM_CHECK(options.num_draft_tokens >= 0, "num_draft_tokens ", options.num_draft_tokens,
               ": must be >= 0");
  FATHOM_CHECK(options.num_draft_tokens == 0 || model_->can_draft(),
               "speculative decoding: the model has no MTP module\n  fix: load a checkpoint with "
               "mtp.* tensors, or do without drafts");
}

double EngineCounters::acceptance_rate() const {
  return num_drafted == 0 ? 0.0
                          : static_cast<double>(num_accepted) / static_cast<double>(num_drafted);
}

void Engine::check_request(const Request& request) const {
  const int64_t length = static_cast<int64_t>(request.prompt_ids.size());
  FATHOM_CHECK(length >= 1, "request: the prompt has no tokens\n  fix: give at least one (BOS)");
  FATHOM_CHECK(length <= config_.max_position_embeddings, "request: the prompt has ", length,
               " tokens, the model's max_position_embeddings is ", config_.max_position_embeddings);
  for (const int32_t id : request.prompt_ids) {
    FATHOM_CHECK(id >= 0 && id < config_.vocab_size, "request: token id ", id,
                 " is outside the vocabulary of ", config_.vocab_size);
  }
  FATHOM_CHECK(!request.seeds.empty(), "request: no seeds; one for each sample is needed");
  check_sampling_params(request.sampling);
  for (const int32_t id : request.lists.token_ids) {
    FATHOM_CHECK(id >= 0 && id < config_.vocab_size, "request: a log-prob is asked of token id ",
                 id, ", outside the vocabulary of ", config_.vocab_size);
  }
  FATHOM_CHECK(request.prompt_log_probs_from < length, "request: prompt log-probs from position ",
               request.prompt_log_probs_from, ", the prompt has ", length, " tokens");
  FATHOM_CHECK(request.sampling.stop.empty() || options_.append_token,
               "request: stop strings need a tokenizer\n  fix: add the tokenizer's files to the "
               "checkpoint directory, or leave the stop strings out");
  FATHOM_CHECK(request.priority >= -kMaxPriority && request.priority <= kMaxPriority,
               "request: priority ", request.priority, ": must be from -", kMaxPriority, " to ",
               kMaxPriority);
  const int64_t needed = memory_.worst_case_bytes(request);
  FATHOM_CHECK(options_.state_bytes == 0 || needed <= options_.state_bytes,
               "request: its state may need ", needed, " bytes (", length, " prompt tokens and ",
               request.sampling.max_new_tokens, " new ones), the engine has ", options_.state_bytes,
               "\n  fix: ask for fewer tokens, or give the engine more memory");
}

int64_t Engine::submit(Request request) {
  check_request(request);
  if (options_.max_queued_requests > 0 &&
      static_cast<int64_t>(groups_.size()) >= options_.max_queued_requests) {
    throw QueueFullError(str_cat("the engine has ", groups_.size(),
                                 " unfinished requests, as many as it takes\n  fix: try again "
                                 "later, or raise max_queued_requests"));
  }
  auto group = std::make_unique<RequestGroup>();
  group->id = next_id_++;
  group->request = std::move(request);
  group->ending_ids = group->request.sampling.stop_token_ids;
  if (!group->request.sampling.ignore_eos) {
    for (const int64_t id : config_.eos_token_ids) {
      group->ending_ids.push_back(static_cast<int32_t>(id));
    }
  }
  group->samples.resize(group->request.seeds.size());
  for (size_t i = 0; i < group->samples.size(); ++i) {
    RunningSample& sample = group->samples[i];
    sample.group = group.get();
    sample.completion.request_id = group->id;
    sample.completion.sample = static_cast<int64_t>(i);
  }
  const int64_t id = group->id;
  RequestGroup* queued = groups_.emplace(id, std::move(group)).first->second.get();
  const bool wants_prompt =
      queued->request.prompt_log_probs_from >= 0 || queued->request.record_replay;
  if (!draws_tokens(*queued) && !wants_prompt) {
    for (RunningSample& sample : queued->samples) finish(&sample, FinishReason::kLength);
    drop_finished_groups();
  } else {
    scheduler_.add(queued);
  }
  return id;
}

bool Engine::draws_tokens(const RequestGroup& group) const {
  return group.request.sampling.max_new_tokens > 0 &&
         group.prompt_length() < config_.max_position_embeddings;
}

void Engine::finish(RunningSample* sample, FinishReason reason) {
  sample->finished = true;
  sample->state.reset();
  Completion& completion = sample->completion;
  // Rows of drafts that came to nothing, and of tokens behind the end.
  const int64_t num_fed = std::max(sample->group->prompt_length(), sample->num_tokens() - 1);
  completion.replay.truncate(num_fed);
  completion.finish_reason = reason;
  completion.weight_version = completion.weight_versions.empty()
                                  ? weight_version_
                                  : completion.weight_versions.back().first;
  if (completion.weight_versions.size() == 1) completion.weight_versions.clear();
  completion.text = replace_invalid_utf8(sample->text.bytes());
  completion.prompt_log_probs = sample->group->prompt_log_probs;
  completion.prompt_lists = sample->group->prompt_lists;
  completions_.push_back(std::move(completion));
  any_finished_ = true;
}

void Engine::drop_finished_groups() {
  if (!any_finished_) return;
  any_finished_ = false;
  std::erase_if(groups_, [](const auto& entry) { return entry.second->is_finished(); });
}

std::vector<Completion> Engine::take_completions() { return std::exchange(completions_, {}); }

std::vector<Completion> Engine::run_until_done() {
  while (step()) {
  }
  std::vector<Completion> all = take_completions();
  std::sort(all.begin(), all.end(), [](const Completion& a, const Completion& b) {
    return std::tie(a.request_id, a.sample) < std::tie(b.request_id, b.sample);
  });
  return all;
}

void Engine::abort(int64_t request_id) {
  const auto found = groups_.find(request_id);
  if (found == groups_.end()) return;
  RequestGroup* group = found->second.get();
  scheduler_.remove(group);
  for (RunningSample& sample : group->samples) {
    if (!sample.finished) finish(&sample, FinishReason::kAbort);
  }
  drop_finished_groups();
}

void Engine::abort_all() {
  while (!groups_.empty()) abort(groups_.begin()->first);
}

void Engine::pause(PauseMode mode) {
  if (mode == PauseMode::kAbort) abort_all();
  if (mode == PauseMode::kRetract) scheduler_.preempt_all();
  // A pause that dropped the states is not undone by a weaker one.
  if (paused_ != PauseMode::kRetract) paused_ = mode;
}

bool Engine::holds_no_state() const { return groups_.empty() || paused_ == PauseMode::kRetract; }

EngineCounters Engine::counters() const {
  EngineCounters counters = counters_;
  counters.num_preemptions = scheduler_.num_preemptions();
  counters.num_preempted_prompt_tokens = scheduler_.num_preempted_prompt_tokens();
  counters.num_preempted_answer_tokens = scheduler_.num_preempted_answer_tokens();
  counters.prefix_cache = memory_.cache().counters();
  counters.num_cached_pages = memory_.cache().num_pages();
  return counters;
}

ReleasedMemory Engine::release_memory() {
  FATHOM_ASSERT(holds_no_state(), groups_.size(),
                " requests are unfinished; finish, abort or retract them before the memory goes");
  ReleasedMemory released;
  released.resident_before = resident_bytes();
  released.state_bytes = space_->pools.kept_bytes();
  flush_cache();
  space_->pools.trim();
  released.resident_after = resident_bytes();
  memory_released_ = true;
  return released;
}

void Engine::set_weight_version(int64_t version) {
  FATHOM_ASSERT(
      holds_no_state(), groups_.size(),
      " requests are unfinished; finish, abort or retract them before the weights change");
  if (version != weight_version_) flush_cache();
  weight_version_ = version;
}

}  // namespace fathom
