#include "fathom/tokenizer/chat.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat_message.h"
#include "fathom/tokenizer/chat_tokens.h"

namespace fathom {
namespace {

using namespace chat;
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
