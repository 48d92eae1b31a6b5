// From a command line to typed options.
//
// Sources, the strongest first: --extra-args, command line, environment (MILES_SCRIPT_<NAME>),
// recipe file (--config FILE), preset (what the recipe of --model-name, --task and --mode sets),
// default.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/config/command.h"
#include "fathom/config/options.h"

namespace fathom::config {

enum class Source { kDefault, kPreset, kRecipe, kEnvironment, kCommandLine, kExtraArgs };

/// One option as it ended up.
struct ResolvedOption {
  std::string name;    // "rollout-batch-size"
  Json value;          // null: unset
  Source source;       // who decided
  std::string origin;  // "--lr", "MILES_SCRIPT_LR", "configs/tiny_cpu.json", "task gsm8k"; or empty
  bool in_hash;        // part of what the run computes
};

struct ParsedCommand {
  Command command;
  bool help = false;  // --help was given: nothing else is filled in
  Options options;
  std::vector<ResolvedOption> resolved;  // every option of this subcommand, in table order
  std::vector<std::string> notes;        // given options that have no effect here, and why

  const ResolvedOption& option(const std::string& name) const;
  /// Set by the user: recipe, environment, command line or extra arguments.
  bool is_given(const std::string& name) const;
};

using Environment = std::map<std::string, std::string>;

/// The process's environment.
Environment current_environment();

/// @param args what follows the subcommand's name.
/// Recipe files may hold options of every subcommand: those that this one does not take are left
/// out, as are their environment variables. On the command line they are errors.
/// Errors: ConfigError that lists everything that is wrong, each with what was got and how to mend
/// it. UserError when the recipe file cannot be read.
ParsedCommand parse_command_line(Command command, const std::vector<std::string>& args,
                                 const Environment& environment);

/// All options with type, default, range and `[env var: ...]`.
std::string help_text(Command command);

/// Two columns, `Argument | Value`; values over 50 characters are cut to 47 and "...".
std::string format_option_table(const ParsedCommand& parsed);

/// {"command", "hash", "options": {name: value}, "sources": {name: "command line --lr"}}.
Json to_json(const ParsedCommand& parsed);

/// SHA-256 over the names and values that decide what is computed: not the run's id, not where it
/// is saved, not threads.
std::string config_hash(const ParsedCommand& parsed);

}  // namespace fathom::config
