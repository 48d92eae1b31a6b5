#include "fathom/tokenizer/chat_message.h"

#include <array>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat_tokens.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom::chat {

void bad_field(const std::string& field, std::string_view expected, const Json& got) {
  std::string text = got.is_discarded() ? "nothing" : dump_python_json(got);
  if (text.size() > 200) text = text.substr(0, 200) + "...";
  throw UserError(str_cat(field, ": ", expected, "\n  got: ", text));
}

const Json* find(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

bool read_flag(const Json& object, const char* key, const std::string& where, bool fallback) {
  const Json* value = find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) bad_field(where + "." + key, "true or false is expected", *value);
  return value->get<bool>();
}

namespace {

using namespace chat_tokens;

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

constexpr std::array<std::pair<std::string_view, Role>, 6> kRoles = {{
    {"system", Role::kSystem},
    {"developer", Role::kDeveloper},
    {"user", Role::kUser},
    {"assistant", Role::kAssistant},
    {"tool", Role::kTool},
    {"latest_reminder", Role::kLatestReminder},
}};

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

}  // namespace

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

}  // namespace fathom::chat
