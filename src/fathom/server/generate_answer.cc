#include "fathom/server/generate_answer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "fathom/base/error.h"

namespace fathom {
namespace {

static_assert(std::endian::native == std::endian::little, "payloads are little-endian");

class LogProbJson {
 public:
  LogProbJson(const ServedModel& model, bool with_text) : model_(model), with_text_(with_text) {}

  /// [log-prob or null, id, text or null]. Every float is written as the double it equals.
  Json triple(int32_t id, const float* log_prob) const {
    Json out = Json::array();
    out.push_back(log_prob == nullptr ? Json(nullptr) : Json(static_cast<double>(*log_prob)));
    out.push_back(id);
    out.push_back(with_text_ ? Json(token_text(*model_.tokenizer, id)) : Json(nullptr));
    return out;
  }

  Json lists(const std::vector<std::vector<TokenLogProb>>& positions, bool null_first) const {
    Json out = Json::array();
    if (null_first) out.push_back(nullptr);
    for (const std::vector<TokenLogProb>& position : positions) {
      Json list = Json::array();
      for (const TokenLogProb& entry : position)
        list.push_back(triple(entry.token_id, &entry.log_prob));
      out.push_back(std::move(list));
    }
    return out;
  }

 private:
  const ServedModel& model_;
  bool with_text_;
};

void add_output_log_probs(const GenerateItem& item, const Completion& c, const ServedModel& model,
                          Json* meta) {
  const LogProbJson as(model, item.options.return_text_in_logprobs);
  Json list = Json::array();
  for (size_t i = 0; i < c.token_ids.size(); ++i) {
    list.push_back(as.triple(c.token_ids[i], &c.log_probs[i]));
  }
  (*meta)["output_token_logprobs"] = std::move(list);
  (*meta)["output_token_logprobs_length"] = c.token_ids.size();
  if (item.request.lists.num_top > 0) (*meta)["output_top_logprobs"] = as.lists(c.lists.top, false);
  if (!item.request.lists.token_ids.empty()) {
    (*meta)["output_token_ids_logprobs"] = as.lists(c.lists.listed, false);
  }
}

/// Aligned with the prompt from logprob_start_len on; the prompt's first token has no log-prob.
void add_input_log_probs(const GenerateItem& item, const Completion& c, const ServedModel& model,
                         Json* meta) {
  const LogProbJson as(model, item.options.return_text_in_logprobs);
  const Request& r = item.request;
  Json list = Json::array();
  if (item.options.logprob_start >= 0) {
    const bool has_first = item.options.logprob_start == 0;
    const auto from = static_cast<size_t>(r.prompt_log_probs_from);
    if (has_first) list.push_back(as.triple(r.prompt_ids[0], nullptr));
    for (size_t i = 0; i < c.prompt_log_probs.size(); ++i) {
      list.push_back(as.triple(r.prompt_ids[from + 1 + i], &c.prompt_log_probs[i]));
    }
    if (r.lists.num_top > 0) {
      (*meta)["input_top_logprobs"] = as.lists(c.prompt_lists.top, has_first);
    }
    if (!r.lists.token_ids.empty()) {
      (*meta)["input_token_ids_logprobs"] = as.lists(c.prompt_lists.listed, has_first);
    }
  } else {
    if (r.lists.num_top > 0) (*meta)["input_top_logprobs"] = Json::array();
    if (!r.lists.token_ids.empty()) (*meta)["input_token_ids_logprobs"] = Json::array();
  }
  (*meta)["input_token_logprobs"] = std::move(list);
}

/// Rows [first, last) of [positions, width], base64.
std::string rows_base64(const std::vector<int32_t>& values, int64_t width, int64_t first,
                        int64_t last) {
  first = std::min(first, last);
  FATHOM_ASSERT(last * width <= static_cast<int64_t>(values.size()), last, " rows of ", width,
                " are asked of ", values.size(), " values");
  return base64(values.data() + first * width, static_cast<size_t>((last - first) * width) * 4);
}

void add_replay(const GenerateItem& item, const Completion& c, Json* meta) {
  if (c.finish_reason == FinishReason::kAbort) return;
  const ReplayRecord& r = c.replay;
  // The last token is never fed, so it has no row.
  const int64_t num_rows =
      static_cast<int64_t>(item.request.prompt_ids.size() + c.token_ids.size()) - 1;
  if (item.options.return_routed_experts) {
    (*meta)["routed_experts"] = rows_base64(r.routes, r.num_layers * r.num_slots,
                                            item.options.routed_experts_start, num_rows);
  }
  if (item.options.return_indexer_topk) {
    (*meta)["indexer_topk"] =
        rows_base64(r.picks, r.num_indexer_layers * r.index_topk, 0, num_rows);
    (*meta)["indexer_topk_num_layers"] = r.num_indexer_layers;
  }
}

Json base_meta(const GenerateItem& item, const std::string& rid, const Completion& c,
               const std::string& weight_version) {
  Json meta{{"id", rid},
            {"finish_reason", nullptr},
            {"prompt_tokens", item.request.prompt_ids.size()},
            {"completion_tokens", c.token_ids.size()},
            {"cached_tokens", c.num_cached_tokens},
            {"total_retractions", c.num_preemptions},
            {"dp_rank", 0},
            {"weight_version", weight_version},
            {"sampling_seed", item.request.seeds[static_cast<size_t>(c.sample)]}};
  if (c.num_verified > 0) {
    meta["spec_verify_ct"] = c.num_verified;
    meta["spec_accept_token_num"] = c.num_accepted;
    meta["spec_draft_token_num"] = c.num_drafted;
  }
  if (item.options.return_prompt_token_ids) meta["prompt_token_ids"] = item.request.prompt_ids;
  return meta;
}

Json answer_json(const std::string& text, const Completion& c, Json meta) {
  Json out{{"text", text}, {"output_ids", c.token_ids}};
  out["meta_info"] = std::move(meta);
  return out;
}

}  // namespace

std::string base64(const void* data, size_t size) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::string out;
  out.reserve((size + 2) / 3 * 4);
  for (size_t i = 0; i < size; i += 3) {
    const size_t count = std::min<size_t>(3, size - i);
    uint32_t word = uint32_t{bytes[i]} << 16;
    if (count > 1) word |= uint32_t{bytes[i + 1]} << 8;
    if (count > 2) word |= uint32_t{bytes[i + 2]};
    for (size_t digit = 0; digit < 4; ++digit) {
      out.push_back(digit <= count ? kDigits[(word >> (18 - 6 * digit)) & 63] : '=');
    }
  }
  return out;
}

Json finish_reason_json(const Answer& answer) {
  const Completion& c = answer.completion;
  Json out{{"type", finish_reason_name(c.finish_reason)}};
  switch (c.finish_reason) {
    case FinishReason::kStop:
      out["matched"] = c.matched_stop.empty() ? Json(c.token_ids.back()) : Json(c.matched_stop);
      break;
    case FinishReason::kLength:
      out["length"] = c.token_ids.size();
      break;
    case FinishReason::kAbort:
      out["message"] = answer.abort_message;
      out["status_code"] = nullptr;
      out["err_type"] = nullptr;
      break;
  }
  return out;
}

Json generate_answer_json(const GenerateItem& item, const std::string& rid, const Answer& answer,
                          const std::string& text, const ServedModel& model) {
  const Completion& c = answer.completion;
  Json meta = base_meta(item, rid, c, answer.weight_version);
  meta["finish_reason"] = finish_reason_json(answer);
  meta["e2e_latency"] = answer.seconds;
  if (!answer.weight_versions.empty()) {
    Json spans = Json::array();
    int64_t begin = 0;
    for (const auto& [version, count] : answer.weight_versions) {
      spans.push_back({{"version", version}, {"start", begin}, {"end", begin + count}});
      begin += count;
    }
    meta["weight_versions"] = std::move(spans);
  }
  if (item.options.return_logprob) {
    add_input_log_probs(item, c, model, &meta);
    add_output_log_probs(item, c, model, &meta);
  }
  add_replay(item, c, &meta);
  return answer_json(text, c, std::move(meta));
}

Json generate_progress_json(const GenerateItem& item, const std::string& rid,
                            const Completion& so_far, const std::string& text,
                            const std::string& weight_version, const ServedModel& model) {
  Json meta = base_meta(item, rid, so_far, weight_version);
  if (item.options.return_logprob) add_output_log_probs(item, so_far, model, &meta);
  return answer_json(text, so_far, std::move(meta));
}

}  // namespace fathom
