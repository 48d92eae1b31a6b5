// Weights from whatever a path holds: a Hugging Face directory, torch_dist weights, a training
// checkpoint or the directory of a run.
#pragma once

#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/model/weights.h"

namespace fathom {

struct WeightsPlace {
  enum class Kind { kModelDirectory, kTorchDist } kind = Kind::kModelDirectory;
  std::string path;           // the directory with the tensors; of several checkpoints the newest
  std::string run_directory;  // of the run that saved it; empty when it was none
};

/// @param path a model directory; a directory with metadata.json; one with a tracker file (its
/// newest checkpoint is meant); or the directory of a run (its checkpoints/).
/// Errors: UserError that says what was looked for.
WeightsPlace find_weights(const std::string& path);

/// fp32 masters: those of a training checkpoint as they are, never a rounded copy.
/// @param model_directory whose config.json describes torch_dist weights; not needed for a model
/// directory. MTP modules are there when both the config and the tensors have them.
/// @param layout only this rank's parts are loaded.
/// Errors: UserError.
Weights load_any_weights(const ExecContext& ctx, const WeightsPlace& place,
                         const std::string& model_directory, const Layout& layout = {});

}  // namespace fathom
