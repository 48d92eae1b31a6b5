// Writes a DCP (torch_dist) directory and puts it into place in one step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/checkpoint/dcp_metadata.h"
#include "fathom/checkpoint/pickle_tensor.h"

namespace fathom {

/// A directory in the making: `<parent>/.<name>.partial`, seen as `<parent>/<name>` only once it is
/// whole. What a killed process left behind is removed by the next one.
class PendingDirectory {
 public:
  /// Locks `parent` (made if missing) against other writers and starts with an empty directory.
  /// Errors: UserError when another process writes a checkpoint there.
  PendingDirectory(const std::string& parent, const std::string& name)
      : PendingDirectory(parent, name, "") {}
  /// The same for work that can go on where a killed process left it: the directory's name
  /// (resumable_path) tells what is made, and one of that name is kept with what is in it.
  /// Those of other tags are removed.
  PendingDirectory(const std::string& parent, const std::string& name, const std::string& tag);
  /// Not published: removed. With a tag, only when no file in it is finished.
  ~PendingDirectory();
  static std::string resumable_path(const std::string& parent, const std::string& name,
                                    const std::string& tag);
  PendingDirectory(const PendingDirectory&) = delete;
  PendingDirectory& operator=(const PendingDirectory&) = delete;

  const std::string& path() const { return partial_path_; }
  std::string file(const std::string& name) const { return join_path(partial_path_, name); }
  /// Writes and flushes a whole file, over an older one.
  void write(const std::string& name, std::string_view bytes);
  /// Flushes the directory and renames it into place; a directory of that name is replaced in the
  /// same instant.
  void publish();

 private:
  std::string parent_, final_path_, partial_path_;
  std::unique_ptr<FileLock> lock_;
  bool is_resumable_ = false, published_ = false;
};

class DcpWriter {
 public:
  struct Options {
    int64_t rank = 0;                       // first number in the files' names
    int64_t max_file_bytes = 8LL << 30;     // a file is closed once it is this long
    int64_t page_aligned_from = 1LL << 62;  // items with at least so many data bytes start on pages
  };
  DcpWriter(const PendingDirectory& directory, const Options& options);
  ~DcpWriter();

  /// Adds one box of a tensor. Boxes of a tensor come in any order; all of them have to come.
  /// @param data the box's elements, row-major.
  void add_chunk(const std::string& key, DType dtype, const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes,
                 const void* data);
  /// The same with the elements coming in pieces.
  void add_chunk(const std::string& key, DType dtype, const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes,
                 const ElementSource& elements);
  /// A whole tensor as one box.
  void add(const std::string& key, DType dtype, const std::vector<int64_t>& shape,
           const void* data);
  /// The same bytes under a second key.
  void add_alias(const std::string& key, const std::string& existing_key);

  /// Flushes the files and returns what .metadata has to say.
  /// Errors: UserError when a tensor is not covered by its boxes.
  DcpMetadata finish();
  int64_t num_bytes() const { return num_bytes_; }  // of all files so far

 private:
  class File;
  const PendingDirectory& directory_;
  Options options_;
  DcpMetadata metadata_;
  std::unique_ptr<File> file_;
  std::string file_name_;
  int64_t num_files_ = 0, num_bytes_ = 0;
  std::map<std::string, int64_t> file_sizes_;
};

/// Writes common.pt, .metadata and, last, metadata.json.
/// @param save_id any text that differs from one save to the next.
void write_dcp_headers(PendingDirectory& directory, DcpMetadata metadata,
                       const std::string& checkpoint_id, const std::string& save_id,
                       std::string_view common_pt);

}  // namespace fathom
