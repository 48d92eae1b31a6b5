// Reads tensors out of a DCP (torch_dist) directory, whole or any box, however they were cut.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/dcp_metadata.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

class DcpReader {
 public:
  /// Opens a directory that holds metadata.json, .metadata and the files it names, and checks them
  /// against one another (validate_dcp_metadata).
  /// Errors: UserError for a directory that is incomplete or inconsistent.
  explicit DcpReader(std::string directory);

  const DcpMetadata& metadata() const { return metadata_; }
  const std::string& directory() const { return directory_; }
  bool contains(const std::string& key) const { return metadata_.tensors.contains(key); }
  /// Errors: UserError when the key is missing.
  const DcpTensor& tensor(const std::string& key) const;

  /// The whole tensor, row-major in its stored dtype.
  Tensor read(const std::string& key);

  /// The box of `sizes` at `offsets` into `out` (row-major, the box's elements one after the
  /// other). The first read of an item checks its CRC. Safe from several threads.
  /// Errors: UserError for a box outside the tensor and for damaged items.
  void read_box(const std::string& key, const std::vector<int64_t>& offsets,
                const std::vector<int64_t>& sizes, void* out);

  /// common.pt as plain data; Python objects without a counterpart are strings "<module name>".
  Json read_common() const;

 private:
  const MappedFile& file(const std::string& name);
  std::string directory_, metadata_path_;
  DcpMetadata metadata_;
  std::mutex mutex_;  // of the next two
  std::map<std::string, std::unique_ptr<MappedFile>> files_;
  std::set<std::pair<std::string, int64_t>> verified_;
};

}  // namespace fathom
