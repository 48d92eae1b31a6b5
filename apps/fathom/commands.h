// The subcommands. Each is one file, cmd_<name>.cc, that turns options into calls of the library.
//
// To add one: write cmd_<name>.cc with run_<name>, declare it here, and add a line to the list in
// commands.cc and to CMakeLists.txt. Its options are rows of src/fathom/config/table_*.cc.
#pragma once

#include "fathom/config/parse.h"

namespace fathom {

/// @return exit code, 0 when done. Errors are thrown: ConfigError ends with 2, all others with 1.
using RunCommand = int (*)(const config::ParsedCommand& command);

int run_bench(const config::ParsedCommand& command);
int run_download(const config::ParsedCommand& command);
int run_eval(const config::ParsedCommand& command);
int run_export_hf(const config::ParsedCommand& command);
int run_generate(const config::ParsedCommand& command);
int run_inspect(const config::ParsedCommand& command);
int run_pipeline(const config::ParsedCommand& command);  // full-train and its stages
int run_plan(const config::ParsedCommand& command);
int run_dry(const config::ParsedCommand& command);  // train --dry-run
int run_score(const config::ParsedCommand& command);
int run_serve(const config::ParsedCommand& command);
int run_sft(const config::ParsedCommand& command);
int run_tokenize(const config::ParsedCommand& command);

/// The function of a subcommand; null when this build does not have it.
RunCommand find_run_command(config::Command command);

}  // namespace fathom
