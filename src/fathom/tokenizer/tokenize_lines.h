// The `tokenize` command without its options: JSON lines in, JSON lines out.
#pragma once

#include <optional>
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

/// The whole command: reads the tokenizer of `directory`, answers the lines of `input` in `output`.
/// @param input, output  paths; unset or "-": standard input and standard output. A file is written
///        when all lines are answered, and then as a whole.
/// Errors: UserError as above, and for files that cannot be read or written.
void tokenize_files(const std::string& directory, const std::optional<std::string>& input,
                    const std::optional<std::string>& output);

}  // namespace fathom
