// The two hashes by which a Hub names a file's content.
#pragma once

#include <string>

#include "fathom/hub/repo.h"

namespace fathom::hub {

/// SHA-256 of a file, lower-case hexadecimal. Errors: UserError when it cannot be read.
std::string file_sha256(const std::string& path);

/// SHA-1 of "blob <size>\0" and the file's bytes: git's name for it.
std::string file_git_sha1(const std::string& path);

/// Whether the file on disk is the one that the listing promises.
/// @param got the hash that it has, for messages.
bool has_promised_content(const std::string& path, const RepoFile& file, std::string* got);

}  // namespace fathom::hub
