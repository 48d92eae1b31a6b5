#include "fathom/rollout/engine.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <tuple>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/model/forward.h"
#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

/// The trainer's forward on the trainer's tensors.
class WeightsModel : public StepModel {
 public:
  WeightsModel(const ExecContext& ctx, const Weights& weights) : ctx_(ctx), weights_(weights) {}

  Tensor step(const Batch& batch, const std::vector<int64_t>& rows) override {
    const Tensor streams = forward_layers(ctx_, weights_, batch, embed(ctx_, weights_, batch));
    if (rows.empty()) return Tensor();
    return logits(ctx_, weights_, collapse(ctx_, weights_, streams, rows));
  }

 private:
  ExecContext ctx_;
  const Weights& weights_;
};

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

void add_lists(const LogProbLists& wanted, DrawnToken* token, ListedLogProbs* lists) {
  if (wanted.num_top > 0) lists->top.push_back(std::move(token->top));
  if (!wanted.token_ids.empty()) lists->listed.push_back(std::move(token->listed));
}

ReplayRecord empty_replay(const ModelConfig& c) {
  ReplayRecord record;
  record.num_layers = c.num_hidden_layers;
  record.num_slots = c.num_experts_per_tok;
  record.num_indexer_layers = c.num_indexer_layers();
  record.index_topk = c.index_topk;
  return record;
}

}  // namespace

int64_t default_page_size(const ModelConfig& config) {
  int64_t multiple = 1;
  for (const int64_t ratio : config.compress_ratios) {
    if (ratio > 0) multiple = std::lcm(multiple, ratio);
  }
  return (16 + multiple - 1) / multiple * multiple;
}

Engine::Engine(const ExecContext& ctx, const Weights& weights, const EngineOptions& options)
    : Engine(ctx, weights.config, std::make_unique<WeightsModel>(ctx, weights), options) {}

Engine::Engine(const ExecContext& ctx, const ModelConfig& config, std::unique_ptr<StepModel> model,
               const EngineOptions& options)
    : ctx_(ctx),
      config_(config),
      options_(options),
      model_(std::move(model)),
      scheduler_({options.max_running_requests, options.chunked_prefill_size}) {
  if (options_.page_size == 0) options_.page_size = default_page_size(config_);
  SequenceState(config_, options_.page_size);  // says now whether the page size fits the model
}

int64_t Engine::submit(Request request) {
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

bool Engine::step() {
  const StepPlan& plan = scheduler_.plan();
  if (plan.empty()) return false;
  build_batch(plan);
  const Tensor logits = model_->step(batch_, rows_);
  draw_tokens(plan, logits);
  scheduler_.complete_step();
  drop_finished_groups();
  return true;
}

void Engine::build_batch(const StepPlan& plan) {
  batch_.token_ids.clear();
  batch_.segments.clear();
  rows_.clear();
  for (RunningSample* sample : plan.decodes) {
    if (sample->state == nullptr) start_sample(sample);
    batch_.token_ids.push_back(sample->completion.token_ids.back());
    Segment segment;
    segment.start_pos = sample->num_tokens() - 1;
    segment.num_tokens = 1;
    segment.state = sample->state.get();
    if (sample->group->request.record_replay) segment.replay_out = &sample->completion.replay;
    batch_.segments.push_back(segment);
    rows_.push_back(batch_.num_tokens() - 1);
  }
  for (const PrefillChunk& chunk : plan.prefills) {
    RequestGroup& group = *chunk.group;
    if (group.prompt_state == nullptr) {
      group.prompt_state = std::make_unique<SequenceState>(config_, options_.page_size);
      group.prompt_replay = empty_replay(config_);
    }
    const auto first = group.request.prompt_ids.begin() + chunk.begin;
    batch_.token_ids.insert(batch_.token_ids.end(), first, first + chunk.num_tokens);
    Segment segment;
    segment.start_pos = chunk.begin;
    segment.num_tokens = chunk.num_tokens;
    segment.state = group.prompt_state.get();
    if (group.request.record_replay) segment.replay_out = &group.prompt_replay;
    batch_.segments.push_back(segment);
    const int64_t first_row = batch_.num_tokens() - chunk.num_tokens;
    const auto [scored_begin, scored_end] = scored_positions(chunk);
    for (int64_t t = scored_begin; t < scored_end; ++t) {
      rows_.push_back(first_row + t - chunk.begin);
    }
    if (chunk.is_last && draws_tokens(group)) rows_.push_back(batch_.num_tokens() - 1);
  }
}

/// Positions of the chunk whose logits say how likely the prompt's next token was.
std::pair<int64_t, int64_t> Engine::scored_positions(const PrefillChunk& chunk) {
  const int64_t from = chunk.group->request.prompt_log_probs_from;
  if (from < 0) return {0, 0};
  const int64_t begin = std::max(chunk.begin, from);
  const int64_t end = std::min(chunk.begin + chunk.num_tokens, chunk.group->prompt_length() - 1);
  return {begin, std::max(begin, end)};
}

bool Engine::draws_tokens(const RequestGroup& group) const {
  return group.request.sampling.max_new_tokens > 0 &&
         group.prompt_length() < config_.max_position_embeddings;
}

void Engine::start_sample(RunningSample* sample) {
  RequestGroup& group = *sample->group;
  const bool is_last =
      std::none_of(group.samples.begin(), group.samples.end(), [&](const RunningSample& other) {
        return &other != sample && !other.finished && other.state == nullptr;
      });
  if (is_last) {
    sample->state = std::move(group.prompt_state);
  } else {
    sample->state = std::make_unique<SequenceState>(*group.prompt_state);
  }
}

void Engine::draw_tokens(const StepPlan& plan, const Tensor& logits) {
  const int64_t V = config_.vocab_size;
  const float* rows = rows_.empty() ? nullptr : logits.f32();
  draws_.clear();
  drawn_for_.clear();
  const auto add_draw = [&](RunningSample& sample, int64_t row) {
    const Request& request = sample.group->request;
    const std::vector<int32_t>& generated = sample.completion.token_ids;
    Draw draw{rows + row * V, &request.sampling,
              request.seeds[static_cast<size_t>(sample.completion.sample)], sample.num_tokens(),
              generated};
    if (static_cast<int64_t>(generated.size()) < request.sampling.min_new_tokens) {
      draw.forbidden = sample.group->ending_ids;
    }
    draw.lists = &request.lists;
    draws_.push_back(draw);
    drawn_for_.push_back(&sample);
  };
  int64_t row = 0;
  for (RunningSample* sample : plan.decodes) add_draw(*sample, row++);
  for (const PrefillChunk& chunk : plan.prefills) {
    const auto [scored_begin, scored_end] = scored_positions(chunk);
    if (scored_begin < scored_end) score_prompt(chunk, rows + row * V);
    row += scored_end - scored_begin;
    if (!chunk.is_last) continue;
    const bool is_drawn = draws_tokens(*chunk.group);
    for (RunningSample& sample : chunk.group->samples) {
      sample.completion.replay = chunk.group->prompt_replay;
      // All samples of the prompt draw their first token from this one row.
      if (is_drawn) {
        add_draw(sample, row);
      } else {
        finish(&sample, FinishReason::kLength);
      }
    }
    row += is_drawn;
  }
  drawn_.resize(draws_.size());
  sampler_.sample(ctx_, V, draws_, drawn_);
  for (size_t i = 0; i < drawn_.size(); ++i) add_token(drawn_for_[i], std::move(drawn_[i]));
}

void Engine::score_prompt(const PrefillChunk& chunk, const float* logits) {
  RequestGroup& group = *chunk.group;
  const auto [begin, end] = scored_positions(chunk);
  const int64_t V = config_.vocab_size;
  std::vector<DrawnToken> scores(static_cast<size_t>(end - begin));
  ctx_.threads->parallel_for(
      end - begin, std::max<int64_t>(1, 16384 / V), [&, first = begin](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          const int32_t next = group.request.prompt_ids[static_cast<size_t>(first + i + 1)];
          scores[static_cast<size_t>(i)] =
              score_token(ctx_, logits + i * V, V, next, group.request.lists);
        }
      });
  for (DrawnToken& score : scores) {
    group.prompt_log_probs.push_back(score.log_prob);
    add_lists(group.request.lists, &score, &group.prompt_lists);
  }
}

void Engine::add_token(RunningSample* sample, DrawnToken token) {
  const RequestGroup& group = *sample->group;
  const SamplingParams& params = group.request.sampling;
  Completion& completion = sample->completion;
  completion.token_ids.push_back(token.token_id);
  completion.log_probs.push_back(token.log_prob);
  add_lists(group.request.lists, &token, &completion.lists);
  // The ending token has no part in the text, so no stop string is looked for in it.
  if (contains(group.ending_ids, token.token_id)) return finish(sample, FinishReason::kStop);
  if (options_.append_token) {
    options_.append_token(token.token_id, sample->text.grow());
    if (const std::string* stop = sample->text.cut_at_stop(params.stop)) {
      completion.matched_stop = *stop;
      return finish(sample, FinishReason::kStop);
    }
  }
  if (static_cast<int64_t>(completion.token_ids.size()) == params.max_new_tokens ||
      sample->num_tokens() == config_.max_position_embeddings) {
    return finish(sample, FinishReason::kLength);
  }
  if (options_.on_token) options_.on_token(completion);
}

void Engine::finish(RunningSample* sample, FinishReason reason) {
  sample->finished = true;
  sample->state.reset();
  Completion& completion = sample->completion;
  completion.finish_reason = reason;
  completion.weight_version = weight_version_;
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

void Engine::set_weight_version(int64_t version) {
  FATHOM_ASSERT(groups_.empty(), groups_.size(),
                " requests are unfinished; finish or abort them before the weights change");
  weight_version_ = version;
}

}  // namespace fathom
