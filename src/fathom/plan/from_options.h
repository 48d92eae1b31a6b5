// From the options of a recipe to what is to be planned.
#pragma once

#include "fathom/config/parse.h"
#include "fathom/plan/request.h"

namespace fathom {

/// Of `plan` and of `train --dry-run`. The model: --model, else the config.json of --hf-checkpoint,
/// else the shape of --model-name. Ranks: --num-procs where it is given, else the GPUs of all
/// nodes. Errors: ConfigError when the numbers contradict each other or no shape is known by the
/// name.
PlanRequest plan_request(const config::ParsedCommand& command);

}  // namespace fathom
