// The Hub client as the subcommands use it.
#pragma once

#include "fathom/config/parse.h"
#include "fathom/launch/stages.h"

namespace fathom {

/// How the stages get a repository; empty in a build without the Hub client.
HubFunctions hub_functions(const config::Options& options);

/// `fathom download`. @return exit code.
int download_from_hub(const config::HubOptions& options, bool dry_run);

}  // namespace fathom
