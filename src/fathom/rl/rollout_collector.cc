#include "fathom/rl/rollout_collector.h"

#include <algorithm>
#include <cstdio>
#include <deque>

#include "fathom/base/error.h"
#include "fathom/observe/progress.h"
#include "fathom/rl/sample_metrics.h"
#include "fathom/train/advantage.h"

namespace fathom {

/// A group that was submitted and is not yet accepted or dropped.
struct PendingGroup {
  int64_t request_id = -1;  // in this rank's engine; -1: another rank runs it
  SampleGroup samples;
  int64_t num_finished = 0;
  bool is_finished() const { return num_finished == static_cast<int64_t>(samples.size()); }
};

namespace {

/// What the counters of a rollout take from an answer.
Json counts_of(const Completion& c) {
  return Json::array({c.num_cached_tokens, c.num_drafted, c.num_accepted, c.num_preemptions});
}

void add_counts(const Json& counts, int64_t num_prompt_tokens, RolloutResult* result) {
  ++result->num_answers;
  result->num_prompt_tokens += num_prompt_tokens;
  result->num_cached_tokens += counts.at(0).get<int64_t>();
  result->num_drafted += counts.at(1).get<int64_t>();
  result->num_accepted += counts.at(2).get<int64_t>();
  result->num_preemptions += counts.at(3).get<int64_t>();
}

std::vector<double> rewards_of(const SampleGroup& group) {
  std::vector<double> rewards;
  for (const Sample& s : group) rewards.push_back(s.reward);
  return rewards;
}

/// A reward in metric names: one decimal, as the public recipe writes it.
std::string reward_text(double reward) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", reward);
  return text;
}

SampleStatus status_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return SampleStatus::kCompleted;
    case FinishReason::kLength:
      return SampleStatus::kTruncated;
    case FinishReason::kAbort:
      return SampleStatus::kAborted;
  }
  return SampleStatus::kFailed;
}

}  // namespace

RolloutCollector::RolloutCollector(const std::vector<Prompt>& prompts, PromptCursor* cursor,
                                   const CollectorOptions& options, dist::Group ranks)
    : prompts_(prompts), cursor_(cursor), options_(options), ranks_(std::move(ranks)) {}

bool RolloutCollector::is_mine(int64_t group_index) const {
  return group_index % ranks_.size() == ranks_.rank();
}

int64_t RolloutCollector::submit_group(Engine* engine, SampleGroup* group) {
  const Prompt& prompt = prompts_[static_cast<size_t>(cursor_->take(1).front())];
  Request request;
  request.prompt_ids = prompt.tokens;
  request.sampling = options_.sampling;
  request.record_replay = options_.record_replay;
  if (options_.max_context_tokens > 0) {
    request.sampling.max_new_tokens =
        std::min(request.sampling.max_new_tokens,
                 options_.max_context_tokens - static_cast<int64_t>(prompt.tokens.size()));
  }
  for (int64_t i = 0; i < options_.n_samples_per_prompt; ++i) {
    Sample sample;
    sample.group_index = next_group_index_;
    sample.index = next_sample_index_++;
    sample.prompt = prompt.text;
    sample.label = prompt.label;
    sample.metadata = prompt.metadata;
    sample.tokens = prompt.tokens;
    request.seeds.push_back(
        sample_seed(options_.rollout_seed, static_cast<uint64_t>(sample.index)));
    group->push_back(std::move(sample));
  }
  const int64_t group_index = next_group_index_++;
  return is_mine(group_index) ? engine->submit(std::move(request)) : -1;
}

void RolloutCollector::add_completion(const Completion& c, SampleGroup* group) const {
  Sample& sample = (*group)[static_cast<size_t>(c.sample)];
  sample.tokens.insert(sample.tokens.end(), c.token_ids.begin(), c.token_ids.end());
  sample.response_length = static_cast<int64_t>(c.token_ids.size());
  sample.response = c.text;
  sample.rollout_log_probs = c.log_probs;
  sample.weight_version = c.weight_version;
  sample.replay = c.replay;
  sample.status = status_of(c.finish_reason);
  // An answer that was cut off is no answer, whatever it had said by then.
  if (sample.status == SampleStatus::kCompleted) {
    sample.reward = compute_reward(options_.reward, sample.response, sample.label);
  }
}

/// One step of every rank's engine; all hear of all that finished, rank by rank.
void RolloutCollector::step_all(Engine* engine, const std::map<int64_t, PendingGroup*>& by_index,
                                std::map<int64_t, PendingGroup*>* by_request,
                                RolloutResult* result) const {
  bool has_worked = engine->step();
  Json finished = Json::array();  // [group index, sample, counters, the sample], for the others
  for (const Completion& c : engine->take_completions()) {
    PendingGroup* group = by_request->at(c.request_id);
    Sample& sample = group->samples[static_cast<size_t>(c.sample)];
    add_counts(counts_of(c), static_cast<int64_t>(sample.tokens.size()), result);
    add_completion(c, &group->samples);
    ++group->num_finished;
    if (ranks_.size() > 1) {
      finished.push_back({sample.group_index, c.sample, counts_of(c), sample_to_json(sample)});
    }
  }
  if (ranks_.size() > 1) {
    const std::vector<uint8_t> mine = Json::to_cbor(Json::array({has_worked, finished}));
    const std::vector<std::string> all = ranks_.all_gather(
        std::string_view(reinterpret_cast<const char*>(mine.data()), mine.size()));
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      if (rank == ranks_.rank()) continue;
      const Json told = Json::from_cbor(all[static_cast<size_t>(rank)]);
      has_worked = has_worked || told.at(0).get<bool>();
      for (const Json& answer : told.at(1)) {
        PendingGroup* group = by_index.at(answer.at(0).get<int64_t>());
        Sample& sample = group->samples[answer.at(1).get<size_t>()];
        add_counts(answer.at(2), static_cast<int64_t>(sample.tokens.size()), result);
        sample = sample_from_json(answer.at(3), str_cat("an answer of rank ", rank));
        ++group->num_finished;
      }
    }
  }
  FATHOM_ASSERT(has_worked, "the engine stopped before all groups were answered");
}

RolloutResult RolloutCollector::collect(Engine* engine) {
  RolloutResult result;
  std::deque<PendingGroup> pending;
  std::map<int64_t, PendingGroup*> by_request, by_index;  // deque elements stay where they are
  const auto target = static_cast<size_t>(options_.rollout_batch_size);
  Progress progress("rollout", options_.rollout_batch_size);
  while (result.groups.size() < target) {
    while (pending.size() < target - result.groups.size()) {
      for (int64_t i = 0; i < options_.over_sampling_batch_size; ++i) {
        PendingGroup& group = pending.emplace_back();
        group.request_id = submit_group(engine, &group.samples);
        if (group.request_id >= 0) by_request[group.request_id] = &group;
        by_index[group.samples.front().group_index] = &group;
        ++result.num_submitted;
      }
    }
    if (!pending.front().is_finished()) {
      progress.update(static_cast<int64_t>(result.groups.size()));
      step_all(engine, by_index, &by_request, &result);
      continue;
    }
    SampleGroup samples = std::move(pending.front().samples);
    by_request.erase(pending.front().request_id);
    by_index.erase(samples.front().group_index);
    pending.pop_front();
    if (options_.keep_only_reward_spread && !has_reward_spread(rewards_of(samples))) {
      ++result.drops["zero_std_" + reward_text(samples.front().reward)];
    } else {
      result.groups.push_back(std::move(samples));
    }
  }
  engine->abort_all();
  engine->take_completions();
  return result;
}

Json RolloutCollector::to_json() const {
  return Json{{"next_group_index", next_group_index_}, {"next_sample_index", next_sample_index_}};
}

void RolloutCollector::restore(const Json& json, const std::string& origin) {
  try {
    next_group_index_ = json.at("next_group_index").get<int64_t>();
    next_sample_index_ = json.at("next_sample_index").get<int64_t>();
  } catch (const Json::exception& e) {
    throw UserError(str_cat(origin, ": the rollout counters are damaged: ", e.what()));
  }
}

MetricList rollout_metrics(const RolloutResult& result) {
  std::vector<const Sample*> samples;
  std::vector<double> versions;
  std::map<std::string, double> zero_std;  // groups whose rewards are all equal, by that reward
  std::map<int64_t, double> pass;          // by k
  double reward = 0.0, log_prob = 0.0, num_tokens = 0.0, total_tokens = 0.0;
  double all_zero = 0.0, all_one = 0.0;
  for (const SampleGroup& group : result.groups) {
    const std::vector<double> rewards = rewards_of(group);
    if (!has_reward_spread(rewards)) zero_std[reward_text(rewards.front())] += 1.0;
    all_zero += std::all_of(rewards.begin(), rewards.end(), [](double r) { return r == 0.0; });
    all_one += std::all_of(rewards.begin(), rewards.end(), [](double r) { return r == 1.0; });
    const auto n = static_cast<int64_t>(group.size());
    const int64_t right = std::count(rewards.begin(), rewards.end(), 1.0);
    for (int64_t k = 1; k <= n; k *= 2) pass[k] += pass_at_k(n, right, k);
    for (const Sample& s : group) {
      samples.push_back(&s);
      versions.push_back(static_cast<double>(s.weight_version));
      reward += s.reward;
      for (float v : s.rollout_log_probs) log_prob += v;
      num_tokens += static_cast<double>(s.response_length);
      total_tokens += static_cast<double>(s.tokens.size());
    }
  }
  const double n = static_cast<double>(std::max<size_t>(1, samples.size()));
  const double groups = static_cast<double>(std::max<size_t>(1, result.groups.size()));
  MetricList metrics = {{"rollout/raw_reward", reward / n}};
  add_sample_metrics("rollout", samples, &metrics);
  metrics.insert(metrics.end(),
                 {{"rollout/response_lengths", num_tokens / n},
                  {"rollout/total_lengths", total_tokens / n},
                  {"rollout/rollout_log_probs", log_prob / std::max(1.0, num_tokens)},
                  {"rollout/zero_std/all_zero_percentage", all_zero / groups},
                  {"rollout/zero_std/all_one_percentage", all_one / groups},
                  {"rollout/num_submitted_groups", static_cast<double>(result.num_submitted)}});
  for (const auto& [value, count] : zero_std) {
    metrics.emplace_back("rollout/zero_std/count_" + value, count);
  }
  const double answers = static_cast<double>(std::max<int64_t>(1, result.num_answers));
  metrics.insert(metrics.end(),
                 {{"rollout/prefix_cache_hit_rate",
                   static_cast<double>(result.num_cached_tokens) /
                       static_cast<double>(std::max<int64_t>(1, result.num_prompt_tokens))},
                  {"rollout/avg_cached_tokens_per_sample",
                   static_cast<double>(result.num_cached_tokens) / answers},
                  {"rollout/num_preemptions", static_cast<double>(result.num_preemptions)}});
  if (result.num_drafted > 0) {
    metrics.emplace_back("rollout/spec_accept_rate", static_cast<double>(result.num_accepted) /
                                                         static_cast<double>(result.num_drafted));
  }
  add_distribution("rollout/weight_version", versions, &metrics);
  for (const auto& [k, sum] : pass) {
    metrics.emplace_back(str_cat("passrate/pass@", k), sum / groups);
  }
  for (const auto& [reason, count] : result.drops) {
    metrics.emplace_back("rollout/dynamic_filter/drop_" + reason, static_cast<double>(count));
  }
  return metrics;
}

}  // namespace fathom
