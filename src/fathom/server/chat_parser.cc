#include "fathom/server/chat_parser.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat_tokens.h"

namespace fathom {
namespace {

constexpr std::string_view kCallsOpen = "\n\n<\uFF5CDSML\uFF5Ctool_calls";

/// Bytes at the end of `text` that begin `marker`.
size_t marker_prefix(std::string_view text, std::string_view marker) {
  for (size_t n = std::min(marker.size() - 1, text.size()); n > 0; --n) {
    if (text.ends_with(marker.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace

ChatParser::Delta ChatParser::advance(std::string_view text, bool is_over) {
  Delta delta;
  while (part_ != Part::kToolCalls) {
    const bool is_reasoning = part_ == Part::kReasoning;
    const std::string_view marker = is_reasoning ? chat_tokens::kThinkEnd : kCallsOpen;
    std::string& out = is_reasoning ? delta.reasoning : delta.content;
    const std::string_view rest = text.substr(at_);
    const size_t found = rest.find(marker);
    if (found == std::string_view::npos) {
      const size_t size = rest.size() - (is_over ? 0 : marker_prefix(rest, marker));
      out += rest.substr(0, size);
      at_ += size;
      break;
    }
    out += rest.substr(0, found);
    at_ += found;
    if (is_reasoning) at_ += marker.size();
    part_ = is_reasoning ? Part::kContent : Part::kToolCalls;
  }
  return delta;
}

ChatParser::Delta ChatParser::feed(std::string_view text) { return advance(text, false); }

ChatParser::Delta ChatParser::finish(std::string_view text) {
  if (text.ends_with(chat_tokens::kEos)) text.remove_suffix(chat_tokens::kEos.size());
  Delta delta = advance(text, true);
  if (part_ != Part::kToolCalls) return delta;
  ParsedCompletion completion = parse_completion(str_cat(text, chat_tokens::kEos), mode_);
  if (completion.ok() && !completion.tool_calls.empty()) {
    tool_calls_ = std::move(completion.tool_calls);
  } else {
    delta.content += text.substr(at_);
  }
  at_ = text.size();
  return delta;
}

int64_t num_reasoning_tokens(const std::vector<int32_t>& token_ids, ThinkingMode mode,
                             const Tokenizer& tokenizer) {
  if (mode != ThinkingMode::kThinking) return 0;
  const std::optional<int32_t> end = tokenizer.token_to_id(chat_tokens::kThinkEnd);
  const auto found = end ? std::find(token_ids.begin(), token_ids.end(), *end) : token_ids.end();
  const int64_t before = found - token_ids.begin();
  return found == token_ids.end() ? before : before + 1;
}

}  // namespace fathom
