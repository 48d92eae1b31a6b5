// Words of a command line: splitting, and which known word was probably meant.
#pragma once

#include <string>
#include <vector>

namespace fathom::config {

/// Splits like a POSIX shell does, without expansions: blanks separate, '...' is literal, "..."
/// keeps blanks and knows \" and \\, a backslash outside quotes takes the next character literally.
/// Errors: ConfigError for a quote that is not closed or a backslash at the end.
std::vector<std::string> split_words(const std::string& text);

/// The candidate with the smallest edit distance (insertions, deletions, substitutions, swaps of
/// neighbours), the first one on a tie. Empty when nothing is reasonably near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace fathom::config
