// The Python client's shared cache.
//
//   models--org--name/blobs/<etag>              contents
//                     snapshots/<commit>/<path> relative symbolic links to them
//                     refs/<revision>           the commit
//                     trees/<commit>.json       the listing
//   .locks/models--org--name/<etag>.lock
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fathom/hub/destination.h"

namespace fathom::hub {

class CacheLayout : public Destination {
 public:
  /// @param use_symlinks off, or where there are none: snapshots hold the files themselves.
  CacheLayout(const std::string& cache_dir, const Repo& repo, const std::string& commit,
              bool use_symlinks);

  /// The commit that a revision had when it was last asked for; nothing when it never was.
  static std::optional<std::string> read_ref(const std::string& cache_dir, const Repo& repo,
                                             const std::string& revision);
  void write_ref(const std::string& revision);

  /// Where trees/ lies.
  const std::string& storage_path() const { return storage_; }
  const std::string& snapshot_path() const { return snapshot_; }
  /// A file of the snapshot that is there with the right size; "" when it is not.
  std::string find(const RepoFile& file) const;

  bool has(const RepoFile& file) override;
  std::string lock_path(const RepoFile& file, const std::string& etag) override;
  bool adopt(const RepoFile& file, const std::string& etag) override;
  std::string partial_stem(const RepoFile& file, const std::string& etag) override;
  void publish(const RepoFile& file, const std::string& etag, PartialFile* partial) override;

 private:
  void prepare();  // once, from any thread
  std::string pointer_path(const RepoFile& file);
  void link(const RepoFile& file, const std::string& etag);

  std::string cache_dir_, folder_, storage_, snapshot_, commit_;
  bool use_symlinks_;
  std::once_flag is_prepared_;
};

}  // namespace fathom::hub
