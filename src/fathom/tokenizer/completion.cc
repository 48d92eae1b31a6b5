#include "fathom/tokenizer/completion.h"

#include <algorithm>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/tokenizer/chat_tokens.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

using namespace chat_tokens;

constexpr std::string_view kCallsOpen = "\n\n<\uFF5CDSML\uFF5Ctool_calls";
constexpr std::string_view kCallsClose = "</\uFF5CDSML\uFF5Ctool_calls>";
constexpr std::string_view kInvokeOpen = "<\uFF5CDSML\uFF5Cinvoke";
constexpr std::string_view kInvokeClose = "</\uFF5CDSML\uFF5Cinvoke";
constexpr std::string_view kParameterOpen = "<\uFF5CDSML\uFF5Cparameter";
constexpr std::string_view kParameterClose = "/\uFF5CDSML\uFF5Cparameter";

struct Malformed {
  std::string what;
};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  struct Part {
    std::string_view before;  // text up to the stop string
    std::string_view stop;    // which one came first
  };

  /// Moves behind the first of the stop strings. Throws Malformed(missing) when none comes.
  Part until(std::initializer_list<std::string_view> stops, const char* missing) {
    size_t first = std::string_view::npos;
    std::string_view found;
    for (const std::string_view stop : stops) {
      const size_t at = text_.find(stop, at_);
      if (at < first) {
        first = at;
        found = stop;
      }
    }
    if (found.empty()) throw Malformed{missing};
    const Part part{text_.substr(at_, first - at_), found};
    at_ = first + found.size();
    return part;
  }

  bool at_end() const { return at_ == text_.size(); }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

std::string json_quoted(std::string_view text) {
  return dump_python_json(std::string(text.substr(0, 200)));
}

void expect_line_end(std::string_view text) {
  if (text != ">\n") throw Malformed{str_cat("'>' and a newline are expected in a tool call")};
}

// ` name="NAME">\n`, and one more newline where a call has no parameters.
std::string invoke_name(std::string_view text) {
  while (!text.empty() && std::string_view(" \t\r\n").find(text[0]) != std::string_view::npos) {
    text.remove_prefix(1);
  }
  constexpr std::string_view kOpen = "name=\"", kClose = "\">\n";
  if (text.ends_with("\n\n")) text.remove_suffix(1);
  if (!text.starts_with(kOpen) || !text.ends_with(kClose) ||
      text.size() < kOpen.size() + kClose.size()) {
    throw Malformed{"a tool call has no name"};
  }
  return std::string(text.substr(kOpen.size(), text.size() - kOpen.size() - kClose.size()));
}

struct Parameter {
  std::string name, json;
};

// ` name="NAME" string="true|false">VALUE<`
Parameter read_parameter(std::string_view text) {
  constexpr std::string_view kOpen = " name=\"", kIsString = "\" string=\"true\">",
                             kIsJson = "\" string=\"false\">";
  const Malformed malformed{"a parameter of a tool call is not of the form name, string, value"};
  if (!text.starts_with(kOpen) || !text.ends_with('<')) throw malformed;
  text.remove_prefix(kOpen.size());
  text.remove_suffix(1);
  const size_t string_at = text.find(kIsString), json_at = text.find(kIsJson);
  if (string_at == json_at) throw malformed;  // neither is there
  const bool is_string = string_at < json_at;
  const size_t name_end = std::min(string_at, json_at);
  const std::string_view value =
      text.substr(name_end + (is_string ? kIsString.size() : kIsJson.size()));
  return {std::string(text.substr(0, name_end)),
          is_string ? dump_python_json(std::string(value)) : std::string(value)};
}

ToolCall read_invoke(Reader& reader) {
  Reader::Part part = reader.until({kParameterOpen, kInvokeClose}, "a tool call does not end");
  ToolCall call;
  call.name = invoke_name(part.before);
  std::vector<std::string> names;
  call.arguments.push_back('{');
  while (part.stop == kParameterOpen) {
    const Parameter parameter =
        read_parameter(reader.until({kParameterClose}, "a parameter does not end").before);
    if (std::find(names.begin(), names.end(), parameter.name) != names.end()) {
      throw Malformed{str_cat("the parameter ", json_quoted(parameter.name), " comes twice")};
    }
    if (!names.empty()) call.arguments += ", ";
    call.arguments += str_cat(dump_python_json(parameter.name), ": ", parameter.json);
    names.push_back(parameter.name);
    part = reader.until({kParameterOpen, kInvokeClose}, "a tool call does not end");
    expect_line_end(part.before);
  }
  call.arguments.push_back('}');
  return call;
}

void read(std::string_view text, ThinkingMode mode, ParsedCompletion& out) {
  Reader reader(text);
  if (mode == ThinkingMode::kThinking) {
    const Reader::Part part = reader.until({kThinkEnd, kCallsOpen}, "</think> is missing");
    if (part.stop != kThinkEnd) throw Malformed{"a tool call comes before </think>"};
    out.reasoning_content = part.before;
  }
  const Reader::Part content = reader.until({kEos, kCallsOpen}, "the end token is missing");
  out.content = content.before;
  if (content.stop == kCallsOpen) {
    for (;;) {
      const Reader::Part part =
          reader.until({kInvokeOpen, kCallsClose}, "the block of tool calls does not end");
      expect_line_end(part.before);
      if (part.stop == kCallsClose) break;
      out.tool_calls.push_back(read_invoke(reader));
    }
    if (!reader.until({kEos}, "the end token is missing").before.empty()) {
      throw Malformed{"text between the tool calls and the end token"};
    }
  }
  if (!reader.at_end()) throw Malformed{"text after the end token"};
  for (const std::string_view marker : {kBos, kEos, kThinkStart, kThinkEnd, kDsml}) {
    if (out.content.find(marker) != std::string::npos ||
        out.reasoning_content.find(marker) != std::string::npos) {
      throw Malformed{str_cat("the marker ", marker, " inside the text")};
    }
  }
}

}  // namespace

ParsedCompletion parse_completion(std::string_view text, ThinkingMode mode) {
  ParsedCompletion completion;
  try {
    read(text, mode, completion);
  } catch (const Malformed& malformed) {
    completion = ParsedCompletion();
    completion.error = malformed.what;
  }
  return completion;
}

Json message_of(const ParsedCompletion& completion) {
  FATHOM_ASSERT(completion.ok(), "a malformed completion has no message");
  Json message{{"role", "assistant"},
               {"content", completion.content},
               {"reasoning_content", completion.reasoning_content}};
  Json calls = Json::array();
  for (const ToolCall& call : completion.tool_calls) {
    calls.push_back(
        {{"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  message["tool_calls"] = std::move(calls);
  return message;
}

}  // namespace fathom
