// Bodies of POST /v1/completions and /v1/chat/completions as checked records.
#pragma once

#include <string>
#include <vector>

#include "fathom/server/generate_call.h"

namespace fathom {

struct OpenAiCall {
  std::vector<GenerateItem> items;  // prompts; one in a chat
  bool stream = false;
  bool include_usage = false;  // a last event with the usage
  bool logprobs = false;
  bool echo = false;                // completions: the prompt comes first in the text
  std::vector<std::string> echoed;  // prompts as text, where echo is on
  ThinkingMode thinking_mode = ThinkingMode::kChat;
  bool return_meta_info = false;
};

/// Errors: HttpError 400 that names the field, 404 for another model's name.
OpenAiCall parse_completion_call(const Json& body, const ServedModel& model);
OpenAiCall parse_chat_call(const Json& body, const ServedModel& model);

}  // namespace fathom
