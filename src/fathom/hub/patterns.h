// Names of files: which are wanted, and which may not be written anywhere.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom::hub {

/// Shell pattern, case sensitive: * any run of characters, '/' included, ? one character (of UTF-8:
/// one code point), [abc] [a-z] [!a] one of a set. As Python's fnmatch.
bool matches_pattern(std::string_view path, std::string_view pattern);

/// The pattern that matches `path` and nothing else.
std::string literal_pattern(const std::string& path);

/// Whether some `include` pattern matches (none given: all do) and no `exclude` pattern does. A
/// pattern that ends in '/' stands for everything below.
bool is_wanted(const std::string& path, const std::vector<std::string>& include,
               const std::vector<std::string>& exclude);

/// A path of a repository becomes a path on disk. Errors: UserError for one that is absolute or
/// leaves its directory under the rules of POSIX or of Windows ("..", "C:", "\\host"), for empty
/// parts and for control characters.
void check_path_is_safe(const std::string& path);

}  // namespace fathom::hub
