// One step of the engine: drafts, the batch, the model, the draws.
#include <algorithm>
#include <utility>

#include "fathom/rollout/engine.h"

namespace fathom {
namespace {

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

void add_lists(const LogProbLists& wanted, DrawnToken* token, ListedLogProbs* lists) {
  if (wanted.num_top > 0) lists->top.push_back(std::move(token->top));
  if (!wanted.token_ids.empty()) lists->listed.push_back(std::move(token->listed));
}

SequenceState* state_of(const Work& work) {
  return work.sample == nullptr ? work.group->prompt_state.get() : work.sample->state.get();
}

}  // namespace

bool Engine::step() {
  FATHOM_ASSERT(!memory_released_, "the memory of states was released and not taken again");
  if (paused_) return false;
  const int64_t num_preemptions = scheduler_.num_preemptions();
  const StepPlan& plan = scheduler_.plan();
  if (plan.empty()) return false;
  draft_tokens(plan);
  build_batch(plan);
  const Tensor logits = model_->step(batch_, rows_);
  add_draws(plan, logits);
  sampler_.sample(ctx_, config_.vocab_size, draws_, drawn_);
  settle_trials();
  cache_pages();
  for (Trial& trial : trials_) {
    for (size_t i = 0; i < trial.num_draws && !trial.sample->finished; ++i) {
      add_token(trial.sample, std::move(drawn_[trial.first_draw + i]));
    }
    trial.sample->drafts.clear();
  }
  const size_t first_other = drawn_.size() - drawn_for_.size();
  for (size_t i = 0; i < drawn_for_.size(); ++i) {
    add_token(drawn_for_[i], std::move(drawn_[first_other + i]));
  }
  trials_.clear();
  ++counters_.num_steps;
  scheduler_.complete_step();
  memory_.note_step(scheduler_.num_preemptions() - num_preemptions, scheduler_.running());
  drop_finished_groups();
  return true;
}

/// What the sample's next token is drawn from, when its answer so far is `generated`.
Draw Engine::draw_of(const RunningSample& sample, const float* logits,
                     std::span<const int32_t> generated) const {
  const Request& request = sample.group->request;
  Draw draw{logits, &request.sampling, request.seeds[static_cast<size_t>(sample.completion.sample)],
            sample.group->prompt_length() + static_cast<int64_t>(generated.size()), generated};
  if (static_cast<int64_t>(generated.size()) < request.sampling.min_new_tokens) {
    draw.forbidden = sample.group->ending_ids;
  }
  draw.lists = &request.lists;
  return draw;
}

int64_t Engine::num_drafts_wanted(const RunningSample& sample) const {
  const int64_t num_generated = static_cast<int64_t>(sample.completion.token_ids.size());
  // Each right draft brings a token, and the verification one more.
  return std::max<int64_t>(
      0, std::min({options_.num_draft_tokens,
                   sample.group->request.sampling.max_new_tokens - num_generated - 1,
                   config_.max_position_embeddings - sample.num_tokens() - 1}));
}

/// Guesses tokens behind every running sample, where there is memory to undo them. A guess is drawn
/// as the sampler will draw: the same noise, so that a good head is right at any temperature.
void Engine::draft_tokens(const StepPlan& plan) {
  trials_.clear();
  std::vector<DraftSequence> sequences;
  std::vector<Trial*> trial_of;
  for (RunningSample* sample : plan.decodes) {
    Trial& trial = trials_.emplace_back();
    trial.sample = sample;
    trial.tokens = sample->completion.token_ids;
    const int64_t wanted = num_drafts_wanted(*sample);
    if (wanted == 0 || !memory_.reserve_more(sample->state.get(), 1 + wanted)) continue;
    for (int64_t i = 0; i < wanted; ++i) {
      trial.undo.push_back(memory_.spare_block());
      if (!trial.undo.back()) break;
    }
    if (!trial.undo.back()) {
      trial.undo.clear();
      continue;
    }
    sequences.push_back({.state = sample->state.get(), .token_id = trial.tokens.back()});
    trial_of.push_back(&trial);
  }
  std::vector<DraftSequence*> active;
  std::vector<size_t> active_index;
  for (int64_t depth = 0; depth < options_.num_draft_tokens; ++depth) {
    active.clear();
    active_index.clear();
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (static_cast<int64_t>(trial_of[i]->undo.size()) <= depth) continue;
      active.push_back(&sequences[i]);
      active_index.push_back(i);
    }
    if (active.empty()) break;
    const Tensor logits = model_->draft(active);
    draws_.clear();
    for (size_t a = 0; a < active.size(); ++a) {
      const Trial& trial = *trial_of[active_index[a]];
      const float* row = logits.f32() + static_cast<int64_t>(a) * config_.vocab_size;
      draws_.push_back(draw_of(*trial.sample, row, trial.tokens));
      draws_.back().lists = nullptr;
    }
    drawn_.resize(draws_.size());
    sampler_.sample(ctx_, config_.vocab_size, draws_, drawn_);
    for (size_t a = 0; a < active.size(); ++a) {
      Trial& trial = *trial_of[active_index[a]];
      trial.tokens.push_back(drawn_[a].token_id);
      trial.sample->drafts.push_back(drawn_[a].token_id);
      active[a]->token_id = drawn_[a].token_id;
    }
  }
  model_->end_draft(sequences);
}

Segment& Engine::add_segment(const Work& work, SequenceState* state,
                             std::span<const int32_t> tokens) {
  batch_.token_ids.insert(batch_.token_ids.end(), tokens.begin(), tokens.end());
  Segment segment;
  segment.start_pos = state->num_tokens();
  segment.num_tokens = static_cast<int64_t>(tokens.size());
  segment.state = state;
  if (work.group->request.record_replay) {
    segment.replay_out =
        work.sample == nullptr ? &work.group->prompt_replay : &work.sample->completion.replay;
  }
  return batch_.segments.emplace_back(segment);
}

/// Asks for a checkpoint at the end of every page of tokens that the segment completes and that the
/// prefix cache does not hold.
void Engine::watch_page_ends(const Work& work, Segment* segment, Trial* trial) {
  if (!options_.prefix_cache) return;
  const int64_t page = space_->layout.page_size, end = segment->start_pos + segment->num_tokens;
  const int64_t last = options_.cache_answers ? end : std::min(end, work.group->prompt_length());
  int64_t at = (segment->start_pos / page + 1) * page;
  if (at > last) return;
  const int64_t num_cached =
      memory_.cache().cached_tokens(tokens_of(work), last, work.group->request.record_replay);
  for (at = std::max(at, num_cached + page); at <= last; at += page) {
    StateBlock* block = nullptr;
    if (at < end && trial != nullptr) {
      block = &trial->undo[static_cast<size_t>(at - segment->start_pos - 1)];
    } else if (at < end) {
      StateBlock spare = memory_.spare_block();
      if (!spare) return;
      block = &page_blocks_.emplace_back(std::move(spare));
      segment->checkpoints.push_back({at, block});
    }
    page_ends_.push_back({work, at, block});
  }
}

void Engine::build_batch(const StepPlan& plan) {
  batch_.token_ids.clear();
  batch_.segments.clear();
  rows_.clear();
  page_ends_.clear();
  page_blocks_.clear();
  for (Trial& trial : trials_) {
    RunningSample* sample = trial.sample;
    const size_t num_drafts = sample->drafts.size();
    const Work work{sample->group, sample};
    Segment& segment =
        add_segment(work, sample->state.get(), std::span(trial.tokens).last(1 + num_drafts));
    for (size_t i = 0; i < num_drafts; ++i) {
      segment.checkpoints.push_back(
          {segment.start_pos + 1 + static_cast<int64_t>(i), &trial.undo[i]});
    }
    watch_page_ends(work, &segment, &trial);
    for (int64_t i = segment.num_tokens; i > 0; --i) rows_.push_back(batch_.num_tokens() - i);
  }
  for (const RecomputeChunk& chunk : plan.recomputes) {
    const Work work{chunk.sample->group, chunk.sample};
    const std::vector<int32_t> tokens = tokens_of(work);
    Segment& segment =
        add_segment(work, chunk.sample->state.get(),
                    std::span(tokens).subspan(static_cast<size_t>(chunk.begin),
                                              static_cast<size_t>(chunk.num_tokens)));
    watch_page_ends(work, &segment, nullptr);
    if (chunk.is_last) rows_.push_back(batch_.num_tokens() - 1);
    counters_.num_recomputed_tokens += chunk.num_tokens;
  }
  for (const PrefillChunk& chunk : plan.prefills) add_prefill(chunk);
}

void Engine::add_prefill(const PrefillChunk& chunk) {
  RequestGroup& group = *chunk.group;
  const Work work{&group, nullptr};
  Segment& segment = add_segment(
      work, group.prompt_state.get(),
      std::span(group.request.prompt_ids)
          .subspan(static_cast<size_t>(chunk.begin), static_cast<size_t>(chunk.num_tokens)));
  watch_page_ends(work, &segment, nullptr);
  const int64_t first_row = batch_.num_tokens() - chunk.num_tokens;
  const auto [scored_begin, scored_end] = scored_positions(chunk);
  for (int64_t t = scored_begin; t < scored_end; ++t) {
    rows_.push_back(first_row + t - chunk.begin);
  }
  if (chunk.is_last && draws_tokens(group)) rows_.push_back(batch_.num_tokens() - 1);
  counters_.num_prompt_tokens += chunk.num_tokens;
}

/// Positions of the chunk whose logits say how likely the prompt's next token was.
std::pair<int64_t, int64_t> Engine::scored_positions(const PrefillChunk& chunk) {
  const int64_t from = chunk.group->request.prompt_log_probs_from;
  if (from < 0) return {0, 0};
  const int64_t begin = std::max(chunk.begin, from);
  const int64_t end = std::min(chunk.begin + chunk.num_tokens, chunk.group->prompt_length() - 1);
  return {begin, std::max(begin, end)};
}

void Engine::add_draws(const StepPlan& plan, const Tensor& logits) {
  const int64_t V = config_.vocab_size;
  const float* row = rows_.empty() ? nullptr : logits.f32();
  draws_.clear();
  drawn_for_.clear();
  for (Trial& trial : trials_) {
    trial.first_draw = draws_.size();
    const size_t num_drafts = trial.sample->drafts.size();
    const std::span<const int32_t> tokens = trial.tokens;
    for (size_t i = 0; i <= num_drafts; ++i, row += V) {
      draws_.push_back(draw_of(*trial.sample, row, tokens.first(tokens.size() - num_drafts + i)));
    }
  }
  const auto add_draw = [&](RunningSample& sample) {
    draws_.push_back(draw_of(sample, row, sample.completion.token_ids));
    drawn_for_.push_back(&sample);
  };
  for (const RecomputeChunk& chunk : plan.recomputes) {
    if (!chunk.is_last) continue;
    add_draw(*chunk.sample);
    row += V;
  }
  for (const PrefillChunk& chunk : plan.prefills) {
    const auto [scored_begin, scored_end] = scored_positions(chunk);
    if (scored_begin < scored_end) score_prompt(chunk, row);
    row += (scored_end - scored_begin) * V;
    if (!chunk.is_last) continue;
    const bool is_drawn = draws_tokens(*chunk.group);
    for (RunningSample& sample : chunk.group->samples) {
      sample.completion.replay = chunk.group->prompt_replay;
      sample.completion.num_cached_tokens = chunk.group->num_cached_tokens;
      sample.completion.prompt_log_probs = chunk.group->prompt_log_probs;
      sample.completion.prompt_lists = chunk.group->prompt_lists;
      // All samples of the prompt draw their first token from this one row.
      if (is_drawn) {
        add_draw(sample);
      } else {
        finish(&sample, FinishReason::kLength);
      }
    }
    if (is_drawn) row += V;
  }
  drawn_.resize(draws_.size());
}

/// Drafts count as long as they are what was drawn; the state forgets the others.
void Engine::settle_trials() {
  for (Trial& trial : trials_) {
    const std::vector<int32_t>& drafts = trial.sample->drafts;
    size_t num_right = 0;
    while (num_right < drafts.size() &&
           drawn_[trial.first_draw + num_right].token_id == drafts[num_right]) {
      ++num_right;
    }
    trial.num_draws = num_right + 1;
    if (num_right < drafts.size()) {
      SequenceState* state = trial.sample->state.get();
      const int64_t num_wrong = static_cast<int64_t>(drafts.size() - num_right);
      state->rewind(state->num_tokens() - num_wrong, trial.undo[num_right]);
    }
    Completion& completion = trial.sample->completion;
    completion.num_verified += drafts.empty() ? 0 : 1;
    counters_.num_verified += drafts.empty() ? 0 : 1;
    completion.num_drafted += static_cast<int64_t>(drafts.size());
    completion.num_accepted += static_cast<int64_t>(num_right);
    counters_.num_drafted += static_cast<int64_t>(drafts.size());
    counters_.num_accepted += static_cast<int64_t>(num_right);
  }
}

/// Hands the pages that this step completed to the prefix cache.
void Engine::cache_pages() {
  for (PageEnd& end : page_ends_) {
    const SequenceState* state = state_of(end.work);
    if (state == nullptr || end.num_tokens > state->num_tokens()) continue;  // wrong drafts
    StateBlock block;
    if (end.num_tokens < state->num_tokens()) {
      block = std::move(*end.checkpoint);
    } else {
      block = memory_.spare_copy(state->block());
      if (!block) continue;
    }
    std::vector<int32_t> tokens = tokens_of(end.work);
    tokens.resize(static_cast<size_t>(end.num_tokens));
    const bool with_replay = end.work.group->request.record_replay;
    const ReplayRecord* replay = end.work.sample == nullptr ? &end.work.group->prompt_replay
                                                            : &end.work.sample->completion.replay;
    memory_.cache().insert(tokens, *state, std::move(block), with_replay ? replay : nullptr);
  }
  page_ends_.clear();
  page_blocks_.clear();
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
  if (completion.weight_versions.empty() ||
      completion.weight_versions.back().first != weight_version_) {
    completion.weight_versions.emplace_back(weight_version_, 0);
  }
  ++completion.weight_versions.back().second;
  ++counters_.num_generated_tokens;
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

}  // namespace fathom
