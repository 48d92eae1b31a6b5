// DeepSeek-V4's message encoder: OpenAI-style messages to the text that the model was trained on.
// There is no template file; this is the format's definition. Reading an answer back: completion.h.
#pragma once

#include <optional>
#include <string>

#include "fathom/base/json.h"

namespace fathom {

enum class ThinkingMode { kChat, kThinking };

struct ChatOptions {
  ThinkingMode thinking_mode = ThinkingMode::kThinking;
  bool drop_thinking = true;  // forget the reasoning of turns before the last user message
  bool add_default_bos_token = true;
  bool add_generation_prompt = true;  // off: the trailing assistant marker is taken off again
  std::optional<std::string> reasoning_effort;  // "high" (no effect) or "max" (a prefix)
  Json tools = nullptr;    // list of OpenAI tools, put on the leading system message
  Json context = nullptr;  // list of messages that were rendered before and are not repeated
};

/// Options from a JSON object: the fields' names as keys, plus `thinking` and `enable_thinking`
/// (booleans; `thinking_mode` beats them). Keys that are absent keep `defaults`.
/// Errors: UserError for an unknown key or a value of the wrong kind; `where` is put in front.
ChatOptions parse_chat_options(const Json& object, const std::string& where,
                               ChatOptions defaults = {});

/// Renders `messages` (a list of objects with `role` and, by role, `content`, `reasoning_content`,
/// `tool_calls`, `tool_call_id`, `tools`, `response_format`, `task`, `wo_eos`). Roles: system,
/// developer, user, assistant, tool, latest_reminder. A user turn at the end is followed by the
/// assistant marker and <think> or </think>, so the result is a prompt as it is; it is to be
/// encoded without adding a BOS. Text of messages is not escaped: a marker in it becomes a marker.
///
/// Messages are best read with parse_python_json: then numbers in tool schemas and arguments are
/// rendered digit for digit. Tool-call `arguments` may be a JSON text or an object; a text that is
/// not JSON becomes one parameter named "arguments".
/// Errors: UserError that names the field, such as messages[2].role.
std::string encode_messages(const Json& messages, const ChatOptions& options = {});

}  // namespace fathom
