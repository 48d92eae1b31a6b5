// The models that plans are made for, by name.
#pragma once

#include <optional>
#include <string>

#include "fathom/model/config.h"

namespace fathom {

ModelConfig tiny_shape();  // configs/tiny/model.json

/// By the names of --model-name, by those of model/named_models.h, and flash, pro, tiny. Nothing
/// for another name.
std::optional<ModelConfig> named_shape(const std::string& name);

}  // namespace fathom
