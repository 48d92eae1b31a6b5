// Chat messages as checked records: what a JSON list of messages holds, with tool messages merged
// into user messages and tool calls rendered. Used by chat.cc.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/base/json.h"

namespace fathom::chat {

enum class Role { kSystem, kDeveloper, kUser, kAssistant, kTool, kLatestReminder };

struct Block {
  bool is_tool_result;
  std::string call_id;  // of a tool result
  std::string text;
};

struct Message {
  Role role;
  std::string content;
  std::vector<Block> blocks;  // of a user message; tool messages end up here
  std::string reasoning;
  std::string tool_schemas;  // one a line, empty without tools
  bool has_tools = false;
  std::optional<std::string> response_format;  // as JSON
  std::vector<std::string> call_ids;           // "" where a call has none
  std::string tool_calls;                      // rendered, empty without calls
  std::string_view task;                       // the task's token, empty without a task
  bool task_is_action = false;
  bool wo_eos = false;
};

/// Consecutive user and tool messages become one user message of several blocks; a user message
/// with a task takes no more text.
/// @param where  the list's name in messages. Errors: UserError that names the field.
std::vector<Message> read_messages(const Json& json, const std::string& where);

/// `messages` with `tools` on the leading system message, which is made if there is none. Each tool
/// goes through the OpenAI schema: unknown keys go, absent ones get their defaults, and the order
/// of keys is the schema's, because the rendering shows it.
Json with_tools(Json messages, const Json& tools);

// Fields of a JSON object. Absent and null are the same in all optional fields.

/// Throws UserError "<field>: <expected>, got <value>".
[[noreturn]] void bad_field(const std::string& field, std::string_view expected, const Json& got);
const Json* find(const Json& object, const char* key);  // null when absent or null
bool read_flag(const Json& object, const char* key, const std::string& where, bool fallback);

}  // namespace fathom::chat
