#include "commands.h"

#include <utility>

namespace fathom {

RunCommand find_run_command(config::Command command) {
  static constexpr std::pair<config::Command, RunCommand> kCommands[] = {
      {config::Command::kGenerate, run_generate},
      {config::Command::kTokenize, run_tokenize},
  };
  for (const auto& [known, run] : kCommands)
    if (known == command) return run;
  return nullptr;
}

}  // namespace fathom
