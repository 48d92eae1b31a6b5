// Strict JSON: duplicate keys, comments, trailing text and NaN are errors that name the origin.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace fathom {

/// Keeps the order of keys, as files and chat templates need it.
using Json = nlohmann::ordered_json;

/// @param origin what the text is, for messages: a path, or "prompts.jsonl line 7".
/// Errors: UserError with origin and byte position.
Json parse_json(std::string_view text, const std::string& origin);

/// Reads and parses a whole file. Errors: UserError that names the path.
Json read_json_file(const std::string& path);

}  // namespace fathom
