// What the parser asks of options after every value is in place: the recipe's own settings, and
// rules that join several options.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "fathom/config/parse.h"

namespace fathom::config {

struct Preset {
  std::string name;
  std::vector<std::string> words;
  std::string reason;  // "task gsm8k"
};

/// The settings of the recipe that the launcher's options stand for. They take the place of
/// defaults, so anything given beats them. Only for the pipeline's subcommands.
std::vector<Preset> recipe_presets(const Options& options);

/// One rule that is broken.
struct Complaint {
  std::vector<std::string> options;  // that take part; the rule is not looked at if one is bad
  std::string message;
};

/// Rules that join several options.
std::vector<Complaint> check_rules(const ParsedCommand& parsed);

}  // namespace fathom::config
