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

}  // namespace fathom
