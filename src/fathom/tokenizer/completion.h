// Reading an answer of the model back into the parts of an assistant message.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fathom/tokenizer/chat.h"

namespace fathom {

struct ToolCall {
  std::string name;
  std::string arguments;  // the text of a JSON object; values of non-string parameters as written
};

/// Answers are often malformed while a model is trained, so a broken one is a value, not an error.
struct ParsedCompletion {
  std::string error;  // empty: well formed, and the fields below are set
  std::string reasoning_content;
  std::string content;
  std::vector<ToolCall> tool_calls;
  bool ok() const { return error.empty(); }
};

/// @param text  what was generated after the prompt, up to and including the end token's text.
/// In thinking mode: reasoning</think>content[tool calls]<end>; in chat mode without the first
/// part.
ParsedCompletion parse_completion(std::string_view text, ThinkingMode mode);

/// The `assistant` message that encode_messages renders to the same text again.
Json message_of(const ParsedCompletion& completion);

}  // namespace fathom
