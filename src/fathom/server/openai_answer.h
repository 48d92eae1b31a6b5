// Responses and events in OpenAI's shapes.
#pragma once

#include <string>
#include <vector>

#include "fathom/server/chat_parser.h"
#include "fathom/server/engine_service.h"
#include "fathom/server/openai_call.h"

namespace fathom {

/// Tokens [first, ...) of a completion for the chat endpoint: {"content": [{"token", "logprob",
/// "bytes", "top_logprobs"}]}.
Json chat_logprobs_json(const Completion& c, size_t first, const Tokenizer& tokenizer);

/// For the completions endpoint: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}.
/// @param text_offset  characters before the first token; moved behind the last.
/// @param echoed  the prompt's tokens come first, with the log-probs that the completion has.
Json completion_logprobs_json(const Completion& c, size_t first, const GenerateItem& item,
                              bool echoed, const Tokenizer& tokenizer, int64_t* text_offset);

/// "stop", "length", "tool_calls" or "abort".
std::string openai_finish_reason(const Completion& c, bool has_tool_calls);

/// [{"index", "id", "type": "function", "function": {"name", "arguments"}}]
Json tool_calls_json(const std::vector<ToolCall>& calls, const std::string& rid, bool with_index);

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0, reasoning_tokens = 0, cached_tokens = 0;
  Json json() const;
};

}  // namespace fathom
