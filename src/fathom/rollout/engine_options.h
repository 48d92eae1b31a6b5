// From the options of the command line to those of the engine.
#pragma once

#include "fathom/config/options.h"
#include "fathom/rollout/engine.h"

namespace fathom {

/// Everything but append_token and on_token. A share of memory is one of what is free now.
EngineOptions engine_options(const config::Options& options);

}  // namespace fathom
