#include "fathom/rl/evaluation.h"

#include <algorithm>
#include <map>

#include "fathom/base/error.h"
#include "fathom/base/json.h"
#include "fathom/observe/progress.h"

namespace fathom {
namespace {

// Keeps the noise of evaluations apart from that of rollouts with the same seed.
constexpr uint64_t kEvaluationSalt = 0xE7A1E7A1E7A1E7A1ull;

/// Every rank gets the answers of all: those to prompt p are rank p % size's.
void share_answers(const dist::Group& ranks, size_t per_prompt, std::vector<Sample>* samples) {
  if (ranks.size() == 1) return;
  const auto owner = [&](size_t i) {
    return static_cast<int>(i / per_prompt % static_cast<size_t>(ranks.size()));
  };
  Json mine = Json::array();
  for (size_t i = 0; i < samples->size(); ++i) {
    if (owner(i) == ranks.rank()) mine.push_back(sample_to_json((*samples)[i]));
  }
  const std::vector<uint8_t> bytes = Json::to_cbor(mine);
  const std::vector<std::string> all =
      ranks.all_gather(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  for (int rank = 0; rank < ranks.size(); ++rank) {
    if (rank == ranks.rank()) continue;
    const Json told = Json::from_cbor(all[static_cast<size_t>(rank)]);
    size_t next = 0;
    for (size_t i = 0; i < samples->size(); ++i) {
      if (owner(i) != rank) continue;
      (*samples)[i] = sample_from_json(told.at(next++), str_cat("an answer of rank ", rank));
    }
  }
}

}  // namespace

EvaluationResult evaluate(Engine* engine, const std::vector<Prompt>& prompts,
                          const EvaluationOptions& options, const dist::Group& ranks) {
  const int64_t n = options.n_samples_per_prompt;
  std::map<int64_t, size_t> prompt_of;  // by request id
  for (size_t p = static_cast<size_t>(ranks.rank()); p < prompts.size();
       p += static_cast<size_t>(ranks.size())) {
    Request request;
    request.prompt_ids = prompts[p].tokens;
    request.sampling = options.sampling;
    for (int64_t j = 0; j < n; ++j) {
      request.seeds.push_back(sample_seed(mix64(options.seed, kEvaluationSalt),
                                          static_cast<uint64_t>(static_cast<int64_t>(p) * n + j)));
    }
    prompt_of[engine->submit(std::move(request))] = p;
  }
  std::vector<Completion> completions;
  Progress progress("evaluation", static_cast<int64_t>(prompts.size()) * n);
  while (engine->step()) {
    for (Completion& c : engine->take_completions()) completions.push_back(std::move(c));
    progress.update(static_cast<int64_t>(completions.size()));
  }
  EvaluationResult result;
  result.samples.resize(prompts.size() * static_cast<size_t>(n));
  for (const Completion& c : completions) {
    const size_t p = prompt_of.at(c.request_id);
    Sample& s = result.samples[p * static_cast<size_t>(n) + static_cast<size_t>(c.sample)];
    s.prompt = prompts[p].text;
    s.label = prompts[p].label;
    s.response = c.text;
    s.response_length = static_cast<int64_t>(c.token_ids.size());
    s.status = c.finish_reason == FinishReason::kStop ? SampleStatus::kCompleted
                                                      : SampleStatus::kTruncated;
    if (s.status == SampleStatus::kCompleted) {
      s.reward = compute_reward(options.reward, s.response, s.label);
    }
  }
  share_answers(ranks, static_cast<size_t>(n), &result.samples);
  double reward = 0.0;
  for (const Sample& s : result.samples) reward += s.reward;
  result.mean_reward = reward / static_cast<double>(std::max<size_t>(1, result.samples.size()));
  return result;
}

}  // namespace fathom
