// Whether everything at a path can be read and is what it should be.
#pragma once

#include <string>

#include "fathom/base/json.h"

namespace fathom {

/// Reads every byte. safetensors: header, ranges, index, and that the tensors fit config.json;
/// torch_dist: every zip record's CRC, every tensor's items against .metadata, common.pt; training
/// checkpoints and runs: all of theirs. Files that a Hub client fetched are compared with the hash
/// that it wrote down (local directory or shared cache), unless they were changed afterwards.
/// @return {"kind": "verify", "path", "ok", "bytes", "files": [{"path", "bytes", "checks": [...]}],
/// "notes": [...], "problems": [...]}. Damage is a problem, not an exception.
/// Errors: UserError for a path that holds none of these.
Json verify_path(const std::string& path);

/// The same as text.
std::string verify_table(const Json& report);

}  // namespace fathom
