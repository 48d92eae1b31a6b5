// Help, the table of resolved options, JSON and hash.
#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/config/parse.h"
#include "fathom/config/table.h"

namespace fathom::config {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kMaxValue = 50;

// Stands for a blank that lines are not broken at.
constexpr char kGlue = '\x1f';

/// `text` broken at blanks into lines of at most kWidth, each after `indent`.
std::string wrapped(const std::string& text, const std::string& indent) {
  std::string out, line = indent;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (line.size() > indent.size() && line.size() + 1 + (end - begin) > kWidth) {
      out += line + "\n";
      line = indent;
    }
    if (line.size() > indent.size()) line += ' ';
    line += text.substr(begin, end - begin);
    begin = end + 1;
  }
  out += line + "\n";
  std::replace(out.begin(), out.end(), kGlue, ' ');
  return out;
}

std::string help_of(const Option& row, Command command) {
  std::string head = "  --" + row.name;
  if (row.name.starts_with("sglang-")) head += ", --" + row.name.substr(7);
  if (row.is_bool()) head += " / --no-" + row.name;
  if (const std::string type = row.type_text(); !type.empty()) head += " " + type;

  std::string facts;
  const auto fact = [&](const std::string& text) { facts += (facts.empty() ? "" : "; ") + text; };
  if (contains(row.required_by, command)) fact("required");
  const std::string value = value_text(row.value());
  if (!row.value().is_null() && !value.empty()) fact("default " + value);
  if (const std::string range = row.range_text(); !range.empty()) fact(range);
  std::string text = row.help;
  if (!facts.empty()) text += " (" + facts + ")";
  if (!row.refusal.empty() && !contains(row.all_built_for, command) &&
      !(command == Command::kPlan && row.is_planned)) {
    std::string built;
    for (const std::string& v : row.built_values)
      if (!v.empty()) built += (built.empty() ? "" : ", ") + v;
    text += built.empty() ? " [not built]" : str_cat(" [built: ", built, "]");
  }
  if (!row.no_effect.empty() && !(command == Command::kPlan && row.is_planned))
    text += " [no effect]";
  if (row.in_environment)
    text += str_cat(" [env", kGlue, "var:", kGlue, environment_name(row.name), "]");
  return head + "\n" + wrapped(text, "      ");
}

std::string source_text(const ResolvedOption& option) {
  std::string name;
  switch (option.source) {
    case Source::kDefault:
      name = "default";
      break;
    case Source::kPreset:
      name = "preset";
      break;
    case Source::kRecipe:
      name = "recipe";
      break;
    case Source::kEnvironment:
      name = "environment";
      break;
    case Source::kCommandLine:
      name = "command line";
      break;
    case Source::kExtraArgs:
      name = "extra args";
      break;
  }
  return option.origin.empty() ? name : name + " " + option.origin;
}

std::string cell(const ResolvedOption& option) {
  std::string text = value_text(option.value);
  if (option.value.is_null()) text = "(unset)";
  for (char& c : text)
    if (c == '\n' || c == '\r' || c == '\t') c = ' ';
  if (text.size() <= kMaxValue) return text;
  // Not in the middle of a UTF-8 character.
  size_t end = kMaxValue - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

}  // namespace

std::string help_text(Command command) {
  Options options;
  const OptionTable table(command, options);
  std::string text = "fathom " + command_name(command) + ": ";
  for (const CommandInfo& info : all_commands())
    if (info.command == command) text += info.summary;
  text += "\n\nUsage: fathom " + command_name(command);
  for (const Option& row : table.rows())
    if (row.is_positional) text += " " + row.type_text();
  text += " [options]\n\n" +
          wrapped(
              "Values: --extra-args beats the command line, which beats the environment, which "
              "beats the recipe file (--config), which beats the defaults" +
                  std::string(contains(kPipeline, command)
                                  ? "; a preset of the recipe that --model-name, --task and "
                                    "--mode stand for beats a default."
                                  : "."),
              "");
  std::vector<std::string> groups;
  for (const Option& row : table.rows())
    if (std::find(groups.begin(), groups.end(), row.group) == groups.end())
      groups.push_back(row.group);
  std::string unbuilt;
  for (const std::string& group : groups) {
    std::string rows;
    for (const Option& row : table.rows()) {
      if (row.group != group) continue;
      if (row.is_unbuilt())
        unbuilt += (unbuilt.empty() ? "--" : " --") + row.name;
      else
        rows += help_of(row, command);
    }
    if (!rows.empty()) text += "\n" + group + "\n" + rows;
  }
  if (!unbuilt.empty())
    text += "\nKnown, but refused with a sentence that says why\n" + wrapped(unbuilt, "  ");
  return text;
}

std::string format_option_table(const ParsedCommand& parsed) {
  size_t name_width = std::string("Argument").size(), value_width = std::string("Value").size();
  for (const ResolvedOption& o : parsed.resolved) {
    name_width = std::max(name_width, o.name.size());
    value_width = std::max(value_width, cell(o).size());
  }
  const std::string rule =
      "+" + std::string(name_width + 2, '-') + "+" + std::string(value_width + 2, '-') + "+\n";
  const auto line = [&](const std::string& name, const std::string& value) {
    return "| " + name + std::string(name_width - name.size(), ' ') + " | " + value +
           std::string(value_width - value.size(), ' ') + " |\n";
  };
  std::string text = rule + line("Argument", "Value") + rule;
  for (const ResolvedOption& o : parsed.resolved) text += line(o.name, cell(o));
  return text + rule;
}

Json to_json(const ParsedCommand& parsed) {
  Json json;
  json["command"] = command_name(parsed.command);
  json["hash"] = config_hash(parsed);
  Json& options = json["options"] = Json::object();
  Json& sources = json["sources"] = Json::object();
  for (const ResolvedOption& o : parsed.resolved) {
    options[o.name] = o.value;
    sources[o.name] = source_text(o);
  }
  return json;
}

std::string config_hash(const ParsedCommand& parsed) {
  std::vector<std::string> lines;
  for (const ResolvedOption& o : parsed.resolved)
    if (o.in_hash) lines.push_back(o.name + "=" + o.value.dump() + "\n");
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line;
  return sha256_hex(text);
}

}  // namespace fathom::config
