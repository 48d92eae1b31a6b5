// JSON as Python's `json` module reads and writes it. Prompts contain JSON (tool schemas,
// arguments, response formats) that models saw in exactly this form, so it is part of the chat
// format.
#pragma once

#include <string>
#include <string_view>

#include "fathom/base/json.h"

namespace fathom {

enum class DuplicateKeys { kRefuse, kLastWins };

/// json.loads: like parse_json, and numbers keep what Python keeps. Integers beyond 64 bits are
/// held as a binary value of subtype kBigInteger with their digits; NaN, Infinity and 1e999 are
/// doubles. Unlike Python a lone surrogate escape is an error (it has no UTF-8), and so is nesting
/// deeper than 1,000.
/// @param origin  named in messages. Errors: UserError with origin and byte position.
Json parse_python_json(std::string_view text, const std::string& origin,
                       DuplicateKeys duplicates = DuplicateKeys::kRefuse);

inline constexpr Json::binary_t::subtype_type kBigInteger = 1;

/// json.dumps(value, ensure_ascii=False): ", " and ": ", insertion order, non-ASCII as it is,
/// floats in the shortest form that reads back (1.0, 1e-05).
/// Errors: UserError for a binary value that did not come from parse_python_json.
std::string dump_python_json(const Json& value);

/// repr(float): "1.0", "1e-05", "1e+16", "inf" as Infinity, "nan" as NaN.
std::string python_float_repr(double value);

}  // namespace fathom
