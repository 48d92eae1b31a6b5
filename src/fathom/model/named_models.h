// The released models' sizes, and cuts of them, by name: for plans and measurements without a
// checkpoint.
#pragma once

#include <string>
#include <vector>

#include "fathom/model/config.h"

namespace fathom {

/// "v4flash", "v4pro", and cuts of Flash's widths: "v4flash-4layer" (ratios 0 0 4 128, 256
/// experts), "v4flash-4layer-64e" (64 experts).
/// Errors: UserError that lists the names.
ModelConfig named_model(const std::string& name);
const std::vector<std::string>& model_names();

/// A name of model_names(), else a config.json or a directory with one. Errors: as load.
ModelConfig named_or_stored_model(const std::string& name_or_path);

}  // namespace fathom
