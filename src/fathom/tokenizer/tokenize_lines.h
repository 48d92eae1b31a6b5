// The `tokenize` command without its options: JSON lines in, JSON lines out.
#pragma once

#include <string>
#include <string_view>

#include "fathom/tokenizer/tokenizer.h"

namespace fathom {

/// One output line for each input line; blank lines are skipped.
///   {"text": T}            -> {"token_ids": [...]}          no BOS added, special tokens
///   recognised
///   {"token_ids": [...]}   -> {"text": T}                   special tokens kept
///   {"messages": [...], options of parse_chat_options...} -> {"text": T, "token_ids": [...]}
/// All lines are read and checked before the first is worked on.
/// @param origin  what the text is, for messages: a path or "standard input".
/// @return the output, each line ended by a newline.
/// Errors: UserError that names the line: not JSON, unknown or missing keys, an empty list, an id
/// without a token, a message that cannot be rendered, a character without a token.
std::string tokenize_lines(const Tokenizer& tokenizer, std::string_view input,
                           const std::string& origin);

}  // namespace fathom
