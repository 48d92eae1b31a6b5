// Where the files of a commit go: the Python client's cache, or a directory of the user's.
#pragma once

#include <string>

#include "fathom/hub/partial_file.h"
#include "fathom/hub/repo.h"

namespace fathom::hub {

/// All errors are UserError: a place that cannot be written, a symbolic link in the way.
class Destination {
 public:
  virtual ~Destination() = default;

  /// Whether the file of this commit is there already, as far as can be told without the Hub. May
  /// hash what lies there and write down that it is right.
  virtual bool has(const RepoFile& file) = 0;

  /// A file that everybody who fetches this content locks.
  virtual std::string lock_path(const RepoFile& file, const std::string& etag) = 0;

  /// Under the lock: whether another process has fetched the content meanwhile; puts it in place.
  virtual bool adopt(const RepoFile& file, const std::string& etag) = 0;

  /// Under the lock: what the partial file's name begins with (partial_file.h).
  virtual std::string partial_stem(const RepoFile& file, const std::string& etag) = 0;

  /// Under the lock: puts a complete and checked file in place.
  virtual void publish(const RepoFile& file, const std::string& etag, PartialFile* partial) = 0;
};

// What both places share.

/// Makes the directories of `relative` below `root`, which exists, and refuses symbolic links among
/// them: a repository's path must not lead out. @return root/relative.
std::string make_directories_below(const std::string& root, const std::string& relative);

/// "a/b" of "a/b/c", "" of "c".
std::string directory_of(const std::string& path);

/// CACHEDIR.TAG, by which backup programs know a cache.
void write_cachedir_tag(const std::string& directory);

/// Size of a regular file (not of what a symbolic link points to), -1 when there is none.
int64_t regular_file_size(const std::string& path);

}  // namespace fathom::hub
