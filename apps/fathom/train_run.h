// The RL loop from options: loads the model and tokenizer, then runs or resumes. Shared by `train` and
// the last stage of `full-train`.
#pragma once

#include "fathom/config/parse.h"

namespace fathom {

/// @param options with hf_checkpoint (configuration, tokenizer) and, where weights come from a
/// torch_dist directory, checkpoint.ref_load filled in.
/// Errors: ConfigError, UserError.
void train_from_options(const config::ParsedCommand& command, const config::Options& options);

}  // namespace fathom
