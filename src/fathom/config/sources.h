// The places that options come from, each read into assignments of words to rows.
#pragma once

#include <string>
#include <vector>

#include "fathom/config/parse.h"
#include "fathom/config/table.h"

namespace fathom::config {

struct Assignment {
  const Option* row;
  std::vector<std::string> words;
  Source source;
  std::string origin;  // how the user wrote it, for messages
};
using Assignments = std::vector<Assignment>;

/// Command line or extra arguments: `--x v`, `--x=v`, `--switch`, `--no-switch`, lists up to the
/// next option. Twice the same option is a problem on the command line; in extra arguments the last
/// one stays.
Assignments read_words(const OptionTable& table, const std::vector<std::string>& words,
                       Source source, std::vector<std::string>* problems);

/// MILES_SCRIPT_<NAME>; empty variables count as not set, lists are split as a shell does.
Assignments read_environment(const OptionTable& table, const Environment& environment,
                             std::vector<std::string>* problems);

/// A JSON object. Keys are option names, with - or _; "description" is a remark. null is unset.
/// Errors: UserError when the file cannot be read.
Assignments read_recipe(const OptionTable& table, const std::string& path,
                        std::vector<std::string>* problems);

}  // namespace fathom::config
