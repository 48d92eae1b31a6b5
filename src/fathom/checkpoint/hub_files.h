// What lies beside the weights in a model directory.
#pragma once

#include <string>

#include "fathom/base/json.h"

namespace fathom {

/// Copies the tokenizer's files, chat templates, generation_config.json and Python files, each
/// atomically. config.json and weights stay behind. Errors: UserError.
void copy_hub_files(const std::string& from_directory, const std::string& to_directory);

/// config.json of a checkpoint after its weights were decoded: no quantization_config and no
/// expert_dtype, model_type deepseek_v4, and torch_dtype bfloat16 if anything was quantised.
Json decoded_config(Json config, bool was_quantised);

/// Early layer-pruned releases call their model_type deepseek_ref. Rewrites config.json of a
/// 4-layer model in place and says so in the log; any other directory, or none, is left alone.
/// @return whether the file was changed.
bool patch_model_type(const std::string& directory);

}  // namespace fathom
