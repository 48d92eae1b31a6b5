// What differs between two checkpoints.
#pragma once

#include <string>

#include "fathom/base/json.h"

namespace fathom {

/// Compares tensors of the same name by element type, shape and bits.
/// @param a, b paths as for inspect_path. Two models in different dialects of names are compared by
/// their official names. Safetensors and torch_dist are compared by official names and as they
/// decode (official_tensors.h); a tensor with the same values in another type is then no
/// difference, and named in "other_type".
/// @return {"kind": "diff", "a", "b", "equal", "num_equal", "only_in_a", "only_in_b": [names],
/// "different": [{"name", "a": {"dtype", "shape"}, "b": {...}} where these differ, plus, where the
/// shapes are the same, "num_different" (elements whose values or, of one type, bits differ),
/// "first_different" (row-major index), "max_abs_diff" (null when an element is NaN or infinite on
/// one side only, or the type is not one to compute with)}], and for two kinds of files
/// "other_type": [{"name", "a", "b"}]}.
/// Errors: UserError for damaged files.
Json diff_checkpoints(const std::string& a, const std::string& b);

/// The same as text: a line a difference, then a summary.
std::string diff_table(const Json& diff);

}  // namespace fathom
