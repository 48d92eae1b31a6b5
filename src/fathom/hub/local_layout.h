// A directory of the user's, with the Python client's notes on what lies in it.
//
//   <path>                                          the file itself
//   .cache/huggingface/download/<path>.metadata     commit, etag, time
//   .cache/huggingface/download/<path>.lock
//   .cache/huggingface/trees/<commit>.json          the listing
#pragma once

#include <mutex>
#include <optional>
#include <string>

#include "fathom/hub/cache_layout.h"
#include "fathom/hub/destination.h"

namespace fathom::hub {

class LocalLayout : public Destination {
 public:
  /// @param cache looked into before the network; may be null. Must outlive this.
  LocalLayout(const std::string& directory, const std::string& commit, const CacheLayout* cache);

  const std::string& directory() const { return directory_; }
  /// Where trees/ lies.
  std::string storage_path() const;
  static std::string storage_path_of(const std::string& directory);

  bool has(const RepoFile& file) override;
  std::string lock_path(const RepoFile& file, const std::string& etag) override;
  bool adopt(const RepoFile& file, const std::string& etag) override;
  std::string partial_stem(const RepoFile& file, const std::string& etag) override;
  void publish(const RepoFile& file, const std::string& etag, PartialFile* partial) override;

 private:
  struct Note {
    std::string commit, etag;
  };
  void prepare();  // once, from any thread
  std::string note_directory(const RepoFile& file);
  std::optional<Note> read_note(const RepoFile& file) const;
  void write_note(const RepoFile& file, const std::string& etag);

  std::string directory_, commit_;
  const CacheLayout* cache_;
  std::once_flag is_prepared_;
};

}  // namespace fathom::hub
