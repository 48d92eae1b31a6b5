// What a person who starts a run should know about runs that are there already.
#pragma once

#include <string>
#include <vector>

#include "fathom/config/parse.h"

namespace fathom {

/// With a run id of one's own: the options that a run of that id was started with and that now have
/// other values ("lr 0.0001 -> 0.0002"), of those that decide results.
/// Without one: the newest unfinished run in --save-dir with the same configuration, and how to go
/// on with it; it is never taken silently.
/// @return lines for the log; none when there is nothing to say.
std::vector<std::string> run_hints(const config::ParsedCommand& command);

}  // namespace fathom
