#include "fathom/data/sample.h"

#include <bit>

#include "fathom/base/error.h"

namespace fathom {
namespace {

constexpr const char* kStatusNames[] = {"pending", "completed", "truncated", "aborted", "failed"};

}  // namespace

Json sample_to_json(const Sample& s) {
  std::vector<uint32_t> log_prob_bits;
  for (float v : s.rollout_log_probs) log_prob_bits.push_back(std::bit_cast<uint32_t>(v));
  return Json{{"group_index", s.group_index},
              {"index", s.index},
              {"prompt", s.prompt},
              {"label", s.label},
              {"metadata", s.metadata},
              {"tokens", s.tokens},
              {"response_length", s.response_length},
              {"response", s.response},
              {"rollout_log_prob_bits", log_prob_bits},
              {"loss_mask", s.loss_mask},
              {"weight_version", s.weight_version},
              {"replay",
               {{"num_layers", s.replay.num_layers},
                {"num_slots", s.replay.num_slots},
                {"num_indexer_layers", s.replay.num_indexer_layers},
                {"index_topk", s.replay.index_topk},
                {"routes", s.replay.routes},
                {"picks", s.replay.picks}}},
              {"reward", s.reward},
              {"remove_sample", s.remove_sample},
              {"status", kStatusNames[static_cast<int>(s.status)]}};
}

Sample sample_from_json(const Json& json, const std::string& origin) {
  try {
    Sample s;
    s.group_index = json.at("group_index").get<int64_t>();
    s.index = json.at("index").get<int64_t>();
    s.prompt = json.at("prompt").get<std::string>();
    s.label = json.at("label").get<std::string>();
    s.metadata = json.at("metadata");
    s.tokens = json.at("tokens").get<std::vector<int32_t>>();
    s.response_length = json.at("response_length").get<int64_t>();
    s.response = json.at("response").get<std::string>();
    for (uint32_t bits : json.at("rollout_log_prob_bits").get<std::vector<uint32_t>>()) {
      s.rollout_log_probs.push_back(std::bit_cast<float>(bits));
    }
    s.loss_mask = json.at("loss_mask").get<std::vector<uint8_t>>();
    s.weight_version = json.at("weight_version").get<int64_t>();
    const Json& replay = json.at("replay");
    s.replay.num_layers = replay.at("num_layers").get<int64_t>();
    s.replay.num_slots = replay.at("num_slots").get<int64_t>();
    s.replay.num_indexer_layers = replay.at("num_indexer_layers").get<int64_t>();
    s.replay.index_topk = replay.at("index_topk").get<int64_t>();
    s.replay.routes = replay.at("routes").get<std::vector<int32_t>>();
    s.replay.picks = replay.at("picks").get<std::vector<int32_t>>();
    s.reward = json.at("reward").get<double>();
    s.remove_sample = json.at("remove_sample").get<bool>();
    const std::string status = json.at("status").get<std::string>();
    int code = 0;
    while (code < 5 && status != kStatusNames[code]) ++code;
    FATHOM_CHECK(code < 5, origin, ": unknown sample status \"", status, "\"");
    s.status = static_cast<SampleStatus>(code);
    return s;
  } catch (const Json::exception& e) {
    throw UserError(str_cat(origin, ": not a sample record: ", e.what()));
  }
}

void check_sample(const Sample& s) {
  const auto n = static_cast<size_t>(s.response_length);
  FATHOM_ASSERT(s.response_length >= 0 && s.prompt_length() >= 0, "sample ", s.index);
  FATHOM_ASSERT(s.rollout_log_probs.empty() || s.rollout_log_probs.size() == n, "sample ", s.index,
                ": ", s.rollout_log_probs.size(), " log-probs for ", n, " response tokens");
  FATHOM_ASSERT(s.loss_mask.empty() || s.loss_mask.size() == n, "sample ", s.index);
}

}  // namespace fathom
