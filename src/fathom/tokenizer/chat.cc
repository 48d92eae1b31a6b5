#include "fathom/tokenizer/chat.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat_tokens.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

using namespace chat_tokens;

constexpr std::string_view kEffortMax =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n";

constexpr std::string_view kToolsBefore =
    "## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools by "
    "writing a \"<\uFF5CDSML\uFF5Ctool_calls>\" block like the following:\n\n"
    "<\uFF5CDSML\uFF5Ctool_calls>\n"
    "<\uFF5CDSML\uFF5Cinvoke name=\"$TOOL_NAME\">\n"
    "<\uFF5CDSML\uFF5Cparameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE"
    "</\uFF5CDSML\uFF5Cparameter>\n"
    "...\n"
    "</\uFF5CDSML\uFF5Cinvoke>\n"
    "<\uFF5CDSML\uFF5Cinvoke name=\"$TOOL_NAME2\">\n"
    "...\n"
    "</\uFF5CDSML\uFF5Cinvoke>\n"
    "</\uFF5CDSML\uFF5Ctool_calls>\n\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other types "
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
    "`string=\"false\"`.\n\n"
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning "
    "inside <think>...</think> BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after </think> with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n";

constexpr std::string_view kToolsAfter =
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool "
    "calls.\n";

constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kTasks = {{
    {"action",
     "<\uFF5C"
     "action\uFF5C>"},
    {"query", "<\uFF5Cquery\uFF5C>"},
    {"authority",
     "<\uFF5C"
     "authority\uFF5C>"},
    {"domain",
     "<\uFF5C"
     "domain\uFF5C>"},
    {"title", "<\uFF5Ctitle\uFF5C>"},
    {"read_url", "<\uFF5Cread_url\uFF5C>"},
}};

enum class Role { kSystem, kDeveloper, kUser, kAssistant, kTool, kLatestReminder };

constexpr std::array<std::pair<std::string_view, Role>, 6> kRoles = {{
    {"system", Role::kSystem},
    {"developer", Role::kDeveloper},
    {"user", Role::kUser},
    {"assistant", Role::kAssistant},
    {"tool", Role::kTool},
    {"latest_reminder", Role::kLatestReminder},
}};

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

[[noreturn]] void bad_field(const std::string& field, std::string_view expected, const Json& got) {
  std::string text = got.is_discarded() ? "nothing" : dump_python_json(got);
  if (text.size() > 200) text = text.substr(0, 200) + "...";
  throw UserError(str_cat(field, ": ", expected, "\n  got: ", text));
}

// Absent and null are the same in all optional fields.
const Json* find(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string text_or_empty(const Json& object, const char* key, const std::string& where) {
  const Json* value = find(object, key);
  if (value == nullptr) return "";
  if (!value->is_string()) bad_field(where + "." + key, "a string is expected", *value);
  return value->get<std::string>();
}

std::string required_text(const Json& object, const char* key, const std::string& where) {
  const Json* value = find(object, key);
  if (value == nullptr)
    bad_field(where + "." + key, "a string is expected", Json::value_t::discarded);
  return text_or_empty(object, key, where);
}

// What Python takes for false, besides null.
bool is_falsy(const Json& value) {
  return value == false || value == 0 || value == "" || (value.is_structured() && value.empty());
}

std::string name_of_kind(const Json& item) {
  const Json* type = find(item, "type");
  if (type == nullptr) return "None";
  return type->is_string() ? type->get<std::string>() : dump_python_json(*type);
}

// A tool's answer: a string, or a list of parts of which only text has a rendering.
std::string tool_result_text(const Json& message, const std::string& where) {
  const Json* content = find(message, "content");
  if (content == nullptr || !content->is_array()) return text_or_empty(message, "content", where);
  std::string out;
  for (size_t i = 0; i < content->size(); ++i) {
    const Json& item = (*content)[i];
    const std::string at = str_cat(where, ".content[", i, "]");
    if (!item.is_object()) bad_field(at, "an object with \"type\" is expected", item);
    if (i > 0) out += "\n\n";
    const std::string kind = name_of_kind(item);
    out += kind == "text" ? text_or_empty(item, "text", at) : str_cat("[Unsupported ", kind, "]");
  }
  return out;
}

// The parameters of one call, one a line.
std::string render_arguments(const Json& function, const std::string& where) {
  const Json* given = find(function, "arguments");
  if (given == nullptr || (!given->is_string() && !given->is_object())) {
    bad_field(where + ".arguments", "a JSON text or an object is expected",
              given == nullptr ? Json(Json::value_t::discarded) : *given);
  }
  Json arguments;
  if (given->is_object()) {
    arguments = *given;
  } else {
    try {
      arguments = parse_python_json(given->get_ref<const std::string&>(), where + ".arguments",
                                    DuplicateKeys::kLastWins);
    } catch (const UserError&) {
      arguments = Json::object();
      arguments["arguments"] = *given;  // kept raw, as the format says
    }
    if (!arguments.is_object()) {
      bad_field(where + ".arguments", "the JSON text of an object is expected", *given);
    }
  }
  std::string out;
  const char* separator = "";
  for (const auto& [key, value] : arguments.items()) {
    out += separator;
    out += str_cat(
        "<", kDsml, "parameter name=\"", key, "\" string=\"", value.is_string() ? "true" : "false",
        "\">", value.is_string() ? value.get_ref<const std::string&>() : dump_python_json(value),
        "</", kDsml, "parameter>");
    separator = "\n";
  }
  return out;
}

void read_tool_calls(const Json& json, const std::string& where, Message& message) {
  const Json* calls = find(json, "tool_calls");
  if (calls == nullptr) return;
  if (!calls->is_array()) bad_field(where + ".tool_calls", "a list is expected", *calls);
  if (calls->empty()) return;
  message.tool_calls = str_cat("\n\n<", kDsml, "tool_calls>\n");
  for (size_t i = 0; i < calls->size(); ++i) {
    const Json& call = (*calls)[i];
    const std::string at = str_cat(where, ".tool_calls[", i, "]");
    const Json* function = call.is_object() ? find(call, "function") : nullptr;
    if (function == nullptr || !function->is_object()) {
      bad_field(at, "an object with \"function\" is expected", call);
    }
    std::string id = text_or_empty(call, "id", at);
    if (id.empty()) id = text_or_empty(*function, "id", at + ".function");
    message.call_ids.push_back(std::move(id));
    message.tool_calls +=
        str_cat("<", kDsml, "invoke name=\"", required_text(*function, "name", at + ".function"),
                "\">\n", render_arguments(*function, at + ".function"), "\n</", kDsml, "invoke>\n");
  }
  message.tool_calls += str_cat("</", kDsml, "tool_calls>");
}

void read_tools(const Json& json, const std::string& where, Message& message) {
  const Json* tools = find(json, "tools");
  if (tools == nullptr) return;
  if (!tools->is_array()) bad_field(where + ".tools", "a list is expected", *tools);
  for (size_t i = 0; i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    if (!tool.is_object() || !tool.contains("function")) {
      bad_field(str_cat(where, ".tools[", i, "]"), "an object with \"function\" is expected", tool);
    }
    if (i > 0) message.tool_schemas += "\n";
    message.tool_schemas += dump_python_json(tool.at("function"));
    message.has_tools = true;
  }
}

void read_task(const Json& json, const std::string& where, Message& message) {
  if (find(json, "task") == nullptr) return;
  const std::string name = required_text(json, "task", where);
  for (const auto& [task, token] : kTasks) {
    if (task == name) message.task = token;
  }
  if (message.task.empty()) {
    bad_field(where + ".task",
              "one of action, query, authority, domain, title, read_url is expected",
              json.at("task"));
  }
  message.task_is_action = name == "action";
}

bool read_flag(const Json& json, const char* key, const std::string& where, bool fallback) {
  const Json* value = find(json, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) bad_field(where + "." + key, "true or false is expected", *value);
  return value->get<bool>();
}

Role read_role(const Json& json, const std::string& where) {
  if (!json.is_object()) bad_field(where, "an object with \"role\" is expected", json);
  const std::string name = required_text(json, "role", where);
  for (const auto& [role_name, role] : kRoles) {
    if (role_name == name) return role;
  }
  bad_field(where + ".role",
            "one of system, developer, user, assistant, tool, latest_reminder is expected",
            json.at("role"));
}

Message read_message(const Json& json, const std::string& where) {
  Message message{};
  message.role = read_role(json, where);
  switch (message.role) {
    case Role::kTool:
      message.blocks.push_back(
          {true, text_or_empty(json, "tool_call_id", where), tool_result_text(json, where)});
      message.role = Role::kUser;
      return message;
    case Role::kUser:
      if (json.contains("content") && json.at("content").is_null()) {
        bad_field(where + ".content", "a string is expected", json.at("content"));
      }
      message.content = text_or_empty(json, "content", where);
      message.blocks.push_back({false, "", message.content});
      break;
    case Role::kDeveloper:
    case Role::kLatestReminder:
      message.content = required_text(json, "content", where);
      break;
    case Role::kSystem:
    case Role::kAssistant:
      message.content = text_or_empty(json, "content", where);
      break;
  }
  read_task(json, where, message);
  message.wo_eos = read_flag(json, "wo_eos", where, false);
  if (message.role == Role::kUser) return message;  // nothing else of a user message is rendered
  if (message.role == Role::kDeveloper && message.content.empty()) {
    bad_field(where + ".content", "a developer message needs text", json.at("content"));
  }
  if (message.role == Role::kAssistant) {
    message.reasoning = text_or_empty(json, "reasoning_content", where);
    read_tool_calls(json, where, message);
  }
  read_tools(json, where, message);
  const Json* format = find(json, "response_format");
  if (format != nullptr && !is_falsy(*format)) {
    message.response_format = dump_python_json(*format);
  }
  return message;
}

/// Consecutive user and tool messages become one user message of several blocks; a user message
/// with a task takes no more text.
std::vector<Message> read_messages(const Json& json, const std::string& where) {
  if (!json.is_array()) bad_field(where, "a list of messages is expected", json);
  std::vector<Message> merged;
  for (size_t i = 0; i < json.size(); ++i) {
    Message message = read_message(json[i], str_cat(where, "[", i, "]"));
    if (message.role == Role::kUser && !merged.empty() && merged.back().role == Role::kUser &&
        (message.blocks[0].is_tool_result || merged.back().task.empty())) {
      merged.back().blocks.push_back(std::move(message.blocks[0]));
    } else {
      merged.push_back(std::move(message));
    }
  }
  return merged;
}

using CallOrder = std::map<std::string, size_t>;

/// Puts tool results in the order of the calls that they answer; text keeps its places.
/// `order` is that of the latest assistant message with calls, carried on.
void sort_tool_results(std::vector<Message>& messages, CallOrder& order) {
  for (Message& message : messages) {
    if (message.role == Role::kAssistant && !message.call_ids.empty()) {
      order.clear();
      for (size_t i = 0; i < message.call_ids.size(); ++i) {
        if (!message.call_ids[i].empty()) order[message.call_ids[i]] = i;
      }
    }
    if (message.role != Role::kUser || order.empty()) continue;
    std::vector<Block> results;
    for (const Block& block : message.blocks) {
      if (block.is_tool_result) results.push_back(block);
    }
    const auto rank = [&](const Block& block) {
      const auto found = order.find(block.call_id);
      return found == order.end() ? size_t{0} : found->second;
    };
    std::stable_sort(results.begin(), results.end(),
                     [&](const Block& a, const Block& b) { return rank(a) < rank(b); });
    size_t next = 0;
    for (Block& block : message.blocks) {
      if (block.is_tool_result) block = std::move(results[next++]);
    }
  }
}

// Index of the last user or developer message, -1 without one.
int64_t last_user_index(const std::vector<Message>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role == Role::kUser || messages[i].role == Role::kDeveloper) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

/// What dropping leaves of the turns before the last user message: no developer messages. (That
/// assistant reasoning is not rendered there either follows from the index.)
std::vector<Message> without_old_developer_turns(const std::vector<Message>& messages) {
  const int64_t last_user = last_user_index(messages);
  std::vector<Message> kept;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (static_cast<int64_t>(i) >= last_user || messages[i].role != Role::kDeveloper) {
      kept.push_back(messages[i]);
    }
  }
  return kept;
}

struct Rendering {
  const std::vector<Message>& messages;
  bool thinking, drop;
  int64_t last_user;

  std::string body(size_t index) const {
    const Message& message = messages[index];
    std::string out;
    switch (message.role) {
      case Role::kSystem:
      case Role::kDeveloper:
        if (message.role == Role::kDeveloper) out += kUser;
        out += message.content;
        if (message.has_tools)
          out += str_cat("\n\n", kToolsBefore, message.tool_schemas, kToolsAfter);
        if (message.response_format) {
          out += str_cat(
              "\n\n## Response Format:\n\nYou MUST strictly adhere to the following "
              "schema to reply:\n",
              *message.response_format);
        }
        return out;
      case Role::kUser: {
        out += kUser;
        const char* separator = "";
        for (const Block& block : message.blocks) {
          out += separator;
          out += block.is_tool_result ? str_cat("<tool_result>", block.text, "</tool_result>")
                                      : block.text;
          separator = "\n\n";
        }
        return out;
      }
      case Role::kLatestReminder:
        return str_cat(kLatestReminder, message.content);
      case Role::kAssistant: {
        // The answer to a task has no reasoning of its own.
        const bool after_task = index > 0 && !messages[index - 1].task.empty();
        if (thinking && !after_task && (!drop || static_cast<int64_t>(index) > last_user)) {
          out += str_cat(message.reasoning, kThinkEnd);
        }
        return str_cat(out, message.content, message.tool_calls, message.wo_eos ? "" : kEos);
      }
      case Role::kTool:
        break;  // merged into user messages before
    }
    FATHOM_ASSERT(false, "a tool message was not merged");
    return out;
  }

  // What opens the next turn, when it is the assistant's (or a reminder before it) or the end.
  std::string transition(size_t index) const {
    const Message& message = messages[index];
    if (index + 1 < messages.size() && messages[index + 1].role != Role::kAssistant &&
        messages[index + 1].role != Role::kLatestReminder) {
      return "";
    }
    if (message.task_is_action) {
      return str_cat(kAssistant, thinking ? kThinkStart : kThinkEnd, message.task);
    }
    if (!message.task.empty()) return std::string(message.task);
    if (message.role != Role::kUser && message.role != Role::kDeveloper) return "";
    const bool think = thinking && (!drop || static_cast<int64_t>(index) >= last_user);
    return str_cat(kAssistant, think ? kThinkStart : kThinkEnd);
  }
};

/// One tool through the OpenAI schema: unknown keys go, absent ones get their defaults, and the
/// order of keys is the schema's, because the rendering shows it.
Json normalised_tool(const Json& tool, const std::string& where) {
  if (!tool.is_object()) bad_field(where, "an object is expected", tool);
  const Json* function = find(tool, "function");
  if (function == nullptr || !function->is_object()) {
    bad_field(where + ".function", "an object is expected",
              function == nullptr ? Json(Json::value_t::discarded) : *function);
  }
  const std::string at = where + ".function";
  const Json* description = find(*function, "description");
  const Json* parameters = find(*function, "parameters");
  Json out = Json::object();
  out["type"] = find(tool, "type") ? required_text(tool, "type", where) : "function";
  Json& normalised = out["function"] = Json::object();
  normalised["description"] =
      description ? Json(text_or_empty(*function, "description", at)) : Json(nullptr);
  normalised["name"] = required_text(*function, "name", at);
  normalised["parameters"] = parameters ? *parameters : Json(nullptr);
  normalised["strict"] = read_flag(*function, "strict", at, false);
  return out;
}

Json with_tools(Json messages, const Json& tools) {
  if (!tools.is_array()) bad_field("tools", "a list is expected", tools);
  if (!messages.is_array()) bad_field("messages", "a list of messages is expected", messages);
  Json normalised = Json::array();
  for (size_t i = 0; i < tools.size(); ++i) {
    normalised.push_back(normalised_tool(tools[i], str_cat("tools[", i, "]")));
  }
  if (messages.empty() || !messages[0].is_object() ||
      messages[0].value("role", Json()) != "system") {
    messages.insert(messages.begin(), Json{{"role", "system"}, {"content", ""}});
  }
  messages[0]["tools"] = std::move(normalised);
  return messages;
}

}  // namespace

ChatOptions parse_chat_options(const Json& object, const std::string& where, ChatOptions defaults) {
  ChatOptions options = std::move(defaults);
  if (!object.is_object()) bad_field(where, "an object of chat options is expected", object);
  for (const auto& [key, value] : object.items()) {
    constexpr std::array<std::string_view, 9> kKnown = {
        "thinking_mode",    "thinking", "enable_thinking",
        "drop_thinking",    "context",  "add_default_bos_token",
        "reasoning_effort", "tools",    "add_generation_prompt"};
    FATHOM_CHECK(
        std::find(kKnown.begin(), kKnown.end(), key) != kKnown.end(), where,
        ": unknown chat option \"", key,
        "\"\n  fix: use thinking_mode, thinking, enable_thinking, drop_thinking, "
        "add_default_bos_token, add_generation_prompt, reasoning_effort, tools or context");
  }
  const auto mode_of = [](bool thinking) {
    return thinking ? ThinkingMode::kThinking : ThinkingMode::kChat;
  };
  const bool now = options.thinking_mode == ThinkingMode::kThinking;
  options.thinking_mode = mode_of(
      read_flag(object, "enable_thinking", where, read_flag(object, "thinking", where, now)));
  if (const Json* mode = find(object, "thinking_mode")) {
    if (*mode != "chat" && *mode != "thinking") {
      bad_field(where + ".thinking_mode", "\"chat\" or \"thinking\" is expected", *mode);
    }
    options.thinking_mode = mode_of(*mode == "thinking");
  }
  options.drop_thinking = read_flag(object, "drop_thinking", where, options.drop_thinking);
  options.add_default_bos_token =
      read_flag(object, "add_default_bos_token", where, options.add_default_bos_token);
  options.add_generation_prompt =
      read_flag(object, "add_generation_prompt", where, options.add_generation_prompt);
  if (const Json* effort = find(object, "reasoning_effort")) {
    if (*effort != "high" && *effort != "max") {
      bad_field(where + ".reasoning_effort", "null, \"high\" or \"max\" is expected", *effort);
    }
    options.reasoning_effort = effort->get<std::string>();
  }
  if (const Json* tools = find(object, "tools")) options.tools = *tools;
  if (const Json* context = find(object, "context")) options.context = *context;
  return options;
}

std::string encode_messages(const Json& messages, const ChatOptions& options) {
  const std::optional<std::string>& effort = options.reasoning_effort;
  FATHOM_CHECK(!effort || *effort == "high" || *effort == "max",
               "reasoning_effort: \"high\" or \"max\" is expected, got \"", *effort, "\"");
  const bool has_tools = !options.tools.is_null() && !options.tools.empty();
  std::vector<Message> tail =
      read_messages(has_tools ? with_tools(messages, options.tools) : messages, "messages");
  std::vector<Message> context;
  if (!options.context.is_null()) context = read_messages(options.context, "context");
  CallOrder order;
  sort_tool_results(context, order);
  sort_tool_results(tail, order);

  std::string out;
  if (options.add_default_bos_token && context.empty()) out += kBos;
  const bool thinking = options.thinking_mode == ThinkingMode::kThinking;
  size_t first = context.size();
  std::vector<Message> all = context;
  all.insert(all.end(), tail.begin(), tail.end());
  const bool drop =
      options.drop_thinking &&
      std::none_of(all.begin(), all.end(), [](const Message& m) { return m.has_tools; });
  if (thinking && drop) {
    all = without_old_developer_turns(all);
    first = without_old_developer_turns(context).size();
  }
  const Rendering rendering{all, thinking, drop, last_user_index(all)};
  for (size_t i = first; i < all.size(); ++i) {
    if (i == 0 && thinking && effort == "max") out += kEffortMax;
    out += rendering.body(i);
    out += rendering.transition(i);
  }
  if (!options.add_generation_prompt && !all.empty() &&
      (all.back().role == Role::kUser || all.back().role == Role::kDeveloper)) {
    const std::string suffix = str_cat(kAssistant, thinking ? kThinkStart : kThinkEnd);
    if (out.ends_with(suffix)) out.resize(out.size() - suffix.size());
  }
  return out;
}

}  // namespace fathom
