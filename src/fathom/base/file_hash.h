// Hashes of files, read piece by piece.
#pragma once

#include <string>

namespace fathom {

/// SHA-256 of a file, lower-case hexadecimal. Errors: UserError when it cannot be read.
std::string file_sha256(const std::string& path);

/// SHA-1 of "blob <size>\0" and the file's bytes: git's name for it.
std::string file_git_sha1(const std::string& path);

}  // namespace fathom
