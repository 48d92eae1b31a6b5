// A checkpoint directory to weights in memory.
#pragma once

#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/model/weights.h"

namespace fathom {

struct LoadOptions {
  bool with_mtp = true;  // MTP modules, where config and files have them
  Layout layout = {};    // of the parameters, this rank's parts alone are loaded
};

/// Reads config.json and the tensors of a Hugging Face directory into fp32 masters: a quantised
/// weight is decoded to BF16 and widened, an F32 weight is taken as it is. One tensor at a time is
/// in memory besides the masters.
/// Errors: UserError for anything wrong with the directory (ModelTensors), and for a weight that is
/// NaN or infinite or an expert id out of range, with the tensor's name.
Weights load_weights(const ExecContext& ctx, const std::string& directory,
                     const LoadOptions& options = {});

/// The same from tensors that are open already.
Weights load_weights(const ExecContext& ctx, const ModelTensors& tensors,
                     const Layout& layout = {});

}  // namespace fathom
