// A chat answer taken apart while it arrives: reasoning, content, tool calls.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fathom/tokenizer/completion.h"
#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

/// reasoning</think>content[tool calls], or content[tool calls] in chat mode. An answer that is
/// malformed loses nothing: without </think> it is all reasoning, and a broken block of tool calls
/// is content.
class ChatParser {
 public:
  explicit ChatParser(ThinkingMode mode)
      : mode_(mode), part_(mode == ThinkingMode::kThinking ? Part::kReasoning : Part::kContent) {}

  struct Delta {
    std::string reasoning, content;
    bool empty() const { return reasoning.empty() && content.empty(); }
  };
  /// @param text  the answer so far; begins with what it was before. @return what is new and will
  /// stay as it is.
  Delta feed(std::string_view text);

  /// The rest, once the answer is over. @param text  all of it, with or without an end token.
  Delta finish(std::string_view text);
  /// After finish().
  const std::vector<ToolCall>& tool_calls() const { return tool_calls_; }

 private:
  enum class Part { kReasoning, kContent, kToolCalls };
  Delta advance(std::string_view text, bool is_over);

  ThinkingMode mode_;
  Part part_;
  size_t at_ = 0;  // bytes of the text that are told or belong to a marker
  std::vector<ToolCall> tool_calls_;
};

/// Tokens of an answer up to and including </think>, all when it does not come; 0 in chat mode.
int64_t num_reasoning_tokens(const std::vector<int32_t>& token_ids, ThinkingMode mode,
                             const Tokenizer& tokenizer);

}  // namespace fathom
