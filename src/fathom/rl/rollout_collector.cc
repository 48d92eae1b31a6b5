#include "fathom/rl/rollout_collector.h"

#include <algorithm>
#include <cstdio>
#include <deque>

#include "fathom/base/error.h"
#include "fathom/train/advantage.h"

namespace fathom {
namespace {

/// A group that was submitted and is not yet accepted or dropped.
struct PendingGroup {
  int64_t request_id = 0;
  SampleGroup samples;
  int64_t num_finished = 0;
  bool is_finished() const { return num_finished == static_cast<int64_t>(samples.size()); }
};

std::vector<double> rewards_of(const SampleGroup& group) {
  std::vector<double> rewards;
  for (const Sample& s : group) rewards.push_back(s.reward);
  return rewards;
}

std::string drop_reason(const SampleGroup& group) {
  char text[48];
  std::snprintf(text, sizeof text, "zero_std_%.1f", group.front().reward);
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
                                   const CollectorOptions& options)
    : prompts_(prompts), cursor_(cursor), options_(options) {}

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
  ++next_group_index_;
  return engine->submit(std::move(request));
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

RolloutResult RolloutCollector::collect(Engine* engine) {
  RolloutResult result;
  std::deque<PendingGroup> pending;
  std::map<int64_t, PendingGroup*> by_request;  // deque elements stay where they are
  const auto target = static_cast<size_t>(options_.rollout_batch_size);
  while (result.groups.size() < target) {
    while (pending.size() < target - result.groups.size()) {
      for (int64_t i = 0; i < options_.over_sampling_batch_size; ++i) {
        PendingGroup& group = pending.emplace_back();
        group.request_id = submit_group(engine, &group.samples);
        by_request[group.request_id] = &group;
        ++result.num_submitted;
      }
    }
    if (!pending.front().is_finished()) {
      FATHOM_ASSERT(engine->step(), "the engine stopped before group ", pending.front().request_id);
      for (const Completion& c : engine->take_completions()) {
        PendingGroup* group = by_request.at(c.request_id);
        add_completion(c, &group->samples);
        ++group->num_finished;
      }
      continue;
    }
    SampleGroup samples = std::move(pending.front().samples);
    by_request.erase(pending.front().request_id);
    pending.pop_front();
    if (options_.keep_only_reward_spread && !has_reward_spread(rewards_of(samples))) {
      ++result.drops[drop_reason(samples)];
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

std::vector<std::pair<std::string, double>> rollout_metrics(const RolloutResult& result) {
  std::vector<int64_t> lengths;
  double reward = 0.0, truncated = 0.0, log_prob = 0.0;
  int64_t all_zero = 0, all_one = 0, zero_spread = 0, num_tokens = 0;
  for (const SampleGroup& group : result.groups) {
    const std::vector<double> rewards = rewards_of(group);
    if (!has_reward_spread(rewards)) ++zero_spread;
    all_zero += std::all_of(rewards.begin(), rewards.end(), [](double r) { return r == 0.0; });
    all_one += std::all_of(rewards.begin(), rewards.end(), [](double r) { return r == 1.0; });
    for (const Sample& s : group) {
      lengths.push_back(s.response_length);
      reward += s.reward;
      truncated += s.status == SampleStatus::kTruncated;
      for (float v : s.rollout_log_probs) log_prob += v;
      num_tokens += s.response_length;
    }
  }
  std::sort(lengths.begin(), lengths.end());
  const double samples = static_cast<double>(std::max<size_t>(1, lengths.size()));
  const double groups = static_cast<double>(std::max<size_t>(1, result.groups.size()));
  const double tokens = static_cast<double>(std::max<int64_t>(1, num_tokens));
  std::vector<std::pair<std::string, double>> metrics = {
      {"rollout/raw_reward", reward / samples},
      {"rollout/response_len/mean", static_cast<double>(num_tokens) / samples},
      {"rollout/response_len/median",
       lengths.empty() ? 0.0 : static_cast<double>(lengths[lengths.size() / 2])},
      {"rollout/response_len/max", lengths.empty() ? 0.0 : static_cast<double>(lengths.back())},
      {"rollout/response_len/min", lengths.empty() ? 0.0 : static_cast<double>(lengths.front())},
      {"rollout/truncated_ratio", truncated / samples},
      {"rollout/rollout_log_probs", log_prob / tokens},
      {"rollout/zero_std/all_zero_percentage", static_cast<double>(all_zero) / groups},
      {"rollout/zero_std/all_one_percentage", static_cast<double>(all_one) / groups},
      {"rollout/zero_std/groups", static_cast<double>(zero_spread)},
      {"rollout/num_submitted_groups", static_cast<double>(result.num_submitted)},
  };
  for (const auto& [reason, count] : result.drops) {
    metrics.emplace_back("rollout/dynamic_filter/drop_" + reason, static_cast<double>(count));
  }
  return metrics;
}

}  // namespace fathom
