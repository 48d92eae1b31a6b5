#include "fathom/config/parse.h"

#include <algorithm>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/config/derived.h"
#include "fathom/config/rules.h"
#include "fathom/config/sources.h"
#include "fathom/config/table.h"
#include "fathom/config/words.h"

extern char** environ;

namespace fathom::config {
namespace {

/// What is known of an option while the sources are being joined.
struct State {
  Source source = Source::kDefault;
  std::string origin;
  bool is_bad = false;
};

class Parser {
 public:
  Parser(Command command, const Environment& environment)
      : environment_(environment), table_(command, parsed_.options) {
    parsed_.command = command;
    states_.resize(table_.rows().size());
  }

  ParsedCommand parse(const std::vector<std::string>& args) {
    if (asks_for_help(args)) {
      parsed_.help = true;
      return std::move(parsed_);
    }
    const Assignments command_line = read_words(table_, args, Source::kCommandLine, &problems_);
    const Assignments environment = read_environment(table_, environment_, &problems_);
    // The two options that bring in others are looked up first.
    apply_only({"config", "extra-args"}, environment);
    apply_only({"config", "extra-args"}, command_line);
    Assignments recipe;
    if (const auto& path = parsed_.options.source.config)
      recipe = read_recipe(table_, *path, &problems_);
    if (parsed_.options.source.extra_args.empty()) apply_only({"extra-args"}, recipe);

    use_slurm_nodes();
    apply(recipe);
    apply(environment);
    apply(command_line);
    apply(read_extra_args());
    name_the_model();
    if (contains(kPipeline, parsed_.command)) {
      if (contains(kTraining, parsed_.command) && !parsed_.options.launch.run_id)
        set("run-id", {make_run_id()}, Source::kPreset, "made now");
      if (parsed_.options.launch.model_name == kTiny)
        set("task", {"digit_sum"}, Source::kPreset, std::string("model ") + kTiny);
      for (const Preset& preset : recipe_presets(parsed_.options))
        set(preset.name, preset.words, Source::kPreset, preset.reason);
    }
    check_every_option();
    check_joint_rules();
    report();
    list_resolved();
    return std::move(parsed_);
  }

 private:
  static bool asks_for_help(const std::vector<std::string>& args) {
    return std::any_of(args.begin(), args.end(),
                       [](const std::string& a) { return a == "--help" || a == "-h"; });
  }

  State& state(const Option& row) { return states_[static_cast<size_t>(&row - &table_.rows()[0])]; }

  void apply(const Assignments& assignments) {
    for (const Assignment& a : assignments) {
      const std::string problem = a.row->set(a.words);
      State& s = state(*a.row);
      s.source = a.source;
      s.origin = a.origin;
      if (problem.empty() && a.row->is_json) check_json(*a.row, a);
      if (problem.empty()) continue;
      s.is_bad = true;
      problems_.push_back(str_cat(a.origin, " ", problem, ", got '", value_text(a.words), "'"));
    }
  }

  void apply_only(const std::set<std::string>& names, const Assignments& assignments) {
    Assignments chosen;
    for (const Assignment& a : assignments)
      if (names.count(a.row->name) != 0) chosen.push_back(a);
    apply(chosen);
  }

  void check_json(const Option& row, const Assignment& a) {
    try {
      if (parse_json(a.words[0], a.origin).is_object()) return;
      problems_.push_back(str_cat(a.origin, " must be a JSON object, got ", a.words[0]));
    } catch (const UserError& e) {
      problems_.push_back(e.what());
    }
    state(row).is_bad = true;
  }

  Assignments read_extra_args() {
    const std::string& text = parsed_.options.source.extra_args;
    try {
      Assignments extra = read_words(table_, split_words(text), Source::kExtraArgs, &problems_);
      std::erase_if(extra, [&](const Assignment& a) {
        const bool nested = a.row->name == "extra-args" || a.row->name == "config";
        if (nested) problems_.push_back(str_cat("--", a.row->name, " cannot be in --extra-args"));
        return nested;
      });
      return extra;
    } catch (const ConfigError& e) {
      problems_.push_back(str_cat("--extra-args: ", e.what()));
      return {};
    }
  }

  /// Sets an option that nothing stronger has set.
  void set(const std::string& name, const std::vector<std::string>& words, Source source,
           const std::string& origin) {
    const Option* row = table_.find(name);
    FATHOM_ASSERT(row != nullptr, "no option --", name);
    State& s = state(*row);
    if (s.source != Source::kDefault) return;
    const std::string problem = row->set(words);
    FATHOM_ASSERT(problem.empty(), "--", name, " ", problem, ", got ", value_text(words));
    s.source = source;
    s.origin = origin;
  }

  void use_slurm_nodes() {
    const auto nodes = environment_.find("SLURM_JOB_NUM_NODES");
    if (!contains(kPipeline, parsed_.command) || nodes == environment_.end()) return;
    const Option* row = table_.find("num-nodes");
    apply({{row, {nodes->second}, Source::kDefault, "SLURM_JOB_NUM_NODES"}});
  }

  /// Without a name of its own a checkpoint that was given is called as its directory.
  void name_the_model() {
    const auto& checkpoint = parsed_.options.launch.hf_checkpoint;
    if (!checkpoint || table_.find("model-name") == nullptr) return;
    const std::string name = base_name(*checkpoint);
    if (!name.empty()) set("model-name", {name}, Source::kPreset, "name of --hf-checkpoint");
  }

  void check_every_option() {
    const bool on_paper = computes_on_paper(parsed_.command, parsed_.options);
    for (const Option& row : table_.rows()) {
      const State& s = state(row);
      const bool is_given = s.source > Source::kPreset || !s.origin.empty();
      const std::string value = value_text(row.value());
      if (s.is_bad) continue;
      if (contains(row.required_by, parsed_.command) && value.empty()) {
        problems_.push_back(str_cat("--", row.name, " is missing: ", row.help));
        state(row).is_bad = true;
      } else if (on_paper && row.is_planned) {
        continue;
      } else if (is_given && !row.refusal.empty() &&
                 !contains(row.all_built_for, parsed_.command) &&
                 std::find(row.built_values.begin(), row.built_values.end(), value) ==
                     row.built_values.end()) {
        const std::string got = value.empty() || row.is_bool() ? "" : " " + value;
        problems_.push_back(str_cat(s.origin, got, ": ", row.refusal));
        state(row).is_bad = true;
      } else if (is_given && !row.no_effect.empty() && s.source != Source::kPreset) {
        parsed_.notes.push_back(str_cat(s.origin, " has no effect: ", row.no_effect));
      }
    }
  }

  void check_joint_rules() {
    list_resolved();
    for (const Complaint& complaint : check_rules(parsed_)) {
      const bool involves_bad =
          std::any_of(complaint.options.begin(), complaint.options.end(), [&](const auto& name) {
            const Option* row = table_.find(name);
            return row != nullptr && state(*row).is_bad;
          });
      if (!involves_bad) problems_.push_back(complaint.message);
    }
  }

  void report() const {
    if (problems_.empty()) return;
    const std::string& name = command_name(parsed_.command);
    std::string message =
        str_cat("fathom ", name, ": ", problems_.size(),
                problems_.size() == 1 ? " problem" : " problems", " with the options");
    for (const std::string& problem : problems_) message += "\n  - " + problem;
    throw ConfigError(message + "\n  `fathom " + name + " --help` lists all options.");
  }

  void list_resolved() {
    parsed_.resolved.clear();
    for (const Option& row : table_.rows()) {
      if (row.is_unbuilt()) continue;
      const State& s = state(row);
      parsed_.resolved.push_back({row.name, row.value(), s.source, s.origin, row.in_hash});
    }
  }

  static std::string value_text(const Json& value) { return config::value_text(value); }

  const Environment& environment_;
  ParsedCommand parsed_;
  OptionTable table_;  // its rows point into parsed_.options
  std::vector<State> states_;
  std::vector<std::string> problems_;
};

}  // namespace

const ResolvedOption& ParsedCommand::option(const std::string& name) const {
  for (const ResolvedOption& o : resolved)
    if (o.name == name) return o;
  throw_internal_error(__FILE__, __LINE__, "option exists",
                       str_cat("fathom ", command_name(command), " has no option --", name));
}

bool ParsedCommand::is_given(const std::string& name) const {
  return option(name).source > Source::kPreset;
}

Environment current_environment() {
  Environment environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) environment[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return environment;
}

ParsedCommand parse_command_line(Command command, const std::vector<std::string>& args,
                                 const Environment& environment) {
  return Parser(command, environment).parse(args);
}

}  // namespace fathom::config
