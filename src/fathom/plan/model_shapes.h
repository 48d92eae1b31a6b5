// The sizes of the released models, for planning without their files.
#pragma once

#include <optional>
#include <string>

#include "fathom/model/config.h"

namespace fathom {

ModelConfig flash_shape();          // DeepSeek-V4-Flash
ModelConfig flash_4_layer_shape();  // its first layers: ratios 0, 0, 4, 128
ModelConfig pro_shape();            // DeepSeek-V4-Pro
ModelConfig tiny_shape();           // configs/tiny/model.json

/// By the names of --model-name, and flash, pro, tiny. Nothing for another name.
std::optional<ModelConfig> named_shape(const std::string& name);

}  // namespace fathom
