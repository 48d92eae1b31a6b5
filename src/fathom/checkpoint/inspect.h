// What lies at a path, for people (a table) and for programs (JSON).
#pragma once

#include <string>

#include "fathom/base/json.h"

namespace fathom {

/// @param path a safetensors file, a model directory, torch_dist weights, a directory of training
/// checkpoints or the directory of a run.
/// @return {"kind", "path", ...}: "kind" is "safetensors", "model", "torch_dist", "checkpoints" or
/// "run". The first three list "tensors" [{"name", "dtype", "shape", "bytes"}] and sum them up in
/// "types"; torch_dist adds "step" and "layout" (files, ranks, pieces, sizes of the job that wrote
/// it), a model that was downloaded "download" (repository and commit), a model "names" (the
/// dialect), "model" (its sizes) and, where the tensors do not fit the configuration, "problem".
/// Errors: UserError for a damaged file and for a path that holds none of these.
Json inspect_path(const std::string& path);

/// The same as text. Tensors that differ only in a layer's or an expert's number share a line.
std::string inspect_table(const Json& found);

}  // namespace fathom
