#include "fathom/server/openai_answer.h"

#include "fathom/base/error.h"
#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

Json bytes_json(const Tokenizer& tokenizer, int32_t id) {
  Json out = Json::array();
  if (!tokenizer.has_id(id)) return out;
  for (const char c : tokenizer.token_bytes(id)) out.push_back(static_cast<unsigned char>(c));
  return out;
}

Json token_json(const Tokenizer& tokenizer, int32_t id, float log_prob) {
  return {{"token", token_text(tokenizer, id)},
          {"logprob", static_cast<double>(log_prob)},
          {"bytes", bytes_json(tokenizer, id)}};
}

int64_t num_characters(std::string_view text) {
  int64_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) next_code_point(text, at);
  return count;
}

}  // namespace

Json chat_logprobs_json(const Completion& c, size_t first, const Tokenizer& tokenizer) {
  Json content = Json::array();
  for (size_t i = first; i < c.token_ids.size(); ++i) {
    Json token = token_json(tokenizer, c.token_ids[i], c.log_probs[i]);
    Json top = Json::array();
    if (i < c.lists.top.size()) {
      for (const TokenLogProb& entry : c.lists.top[i]) {
        top.push_back(token_json(tokenizer, entry.token_id, entry.log_prob));
      }
    }
    token["top_logprobs"] = std::move(top);
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json completion_logprobs_json(const Completion& c, size_t first, const GenerateItem& item,
                              bool echoed, const Tokenizer& tokenizer, int64_t* text_offset) {
  Json tokens = Json::array(), log_probs = Json::array(), tops = Json::array(),
       offsets = Json::array();
  const bool with_tops = item.request.lists.num_top > 0;
  const auto add = [&](int32_t id, const float* log_prob, const std::vector<TokenLogProb>* top) {
    std::string text = token_text(tokenizer, id);
    offsets.push_back(*text_offset);
    *text_offset += num_characters(text);
    tokens.push_back(std::move(text));
    log_probs.push_back(log_prob == nullptr ? Json(nullptr) : Json(static_cast<double>(*log_prob)));
    if (!with_tops) return;
    Json entries = nullptr;
    if (top != nullptr) {
      entries = Json::object();
      for (const TokenLogProb& entry : *top) {
        entries[token_text(tokenizer, entry.token_id)] = static_cast<double>(entry.log_prob);
      }
    }
    tops.push_back(std::move(entries));
  };
  const auto top_of = [&](const ListedLogProbs& lists, size_t i) {
    return i < lists.top.size() ? &lists.top[i] : nullptr;
  };
  if (echoed) {
    const std::vector<int32_t>& prompt = item.request.prompt_ids;
    for (size_t i = 0; i < prompt.size(); ++i) {
      const bool has_value = i > 0 && i - 1 < c.prompt_log_probs.size();
      add(prompt[i], has_value ? &c.prompt_log_probs[i - 1] : nullptr,
          has_value ? top_of(c.prompt_lists, i - 1) : nullptr);
    }
  }
  for (size_t i = first; i < c.token_ids.size(); ++i) {
    add(c.token_ids[i], &c.log_probs[i], top_of(c.lists, i));
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(log_probs)},
          {"tokens", std::move(tokens)},
          {"top_logprobs", with_tops ? std::move(tops) : Json(nullptr)}};
}

std::string openai_finish_reason(const Completion& c, bool has_tool_calls) {
  if (has_tool_calls && c.finish_reason == FinishReason::kStop) return "tool_calls";
  return std::string(finish_reason_name(c.finish_reason));
}

Json tool_calls_json(const std::vector<ToolCall>& calls, const std::string& rid, bool with_index) {
  Json out = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    Json call = Json::object();
    if (with_index) call["index"] = i;
    call["id"] = str_cat("call_", rid, "_", i);
    call["type"] = "function";
    call["function"] = {{"name", calls[i].name}, {"arguments", calls[i].arguments}};
    out.push_back(std::move(call));
  }
  return out;
}

Json Usage::json() const {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", reasoning_tokens}}}};
}

}  // namespace fathom
