// Copies of directories whose completeness is told by sentinel files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fathom {

/// The files that say "this directory is complete": a stage writes them last.
inline constexpr char kShardIndex[] = "model.safetensors.index.json";
inline constexpr char kTracker[] = "latest_checkpointed_iteration.txt";

struct CopyResult {
  int64_t num_copied = 0, num_bytes = 0;  // files that were missing or different
  int64_t num_kept = 0;                   // files that were there
};

/// Makes every file below `from` exist below `to` with the same bytes. A copy is written and
/// flushed, read back from the disk and compared by its SHA-256, and only then given the time of
/// its source; so a file of the same size and time is one that was verified, and is left alone
/// unread. One of the same size and another time is compared byte by byte. Others in `to` stay.
/// Sentinels are removed before the first change and copied last, so an interrupted copy is not
/// taken for whole; run again it goes on with the files that are missing. Errors: UserError that
/// names the file: unreadable, too little space (before the first byte), or read back different.
CopyResult copy_tree(const std::string& from, const std::string& to);

/// The same for one file.
CopyResult copy_file(const std::string& from, const std::string& to);

/// Whether copy_tree would have nothing to do. Errors: UserError when `from` is not there.
bool is_copied(const std::string& from, const std::string& to);

/// Removes the file if it is there. Errors: UserError.
void remove_file(const std::string& path);

}  // namespace fathom
