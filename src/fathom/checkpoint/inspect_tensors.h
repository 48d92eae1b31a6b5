// Every tensor below a path, one at a time, whatever the files are: what comparing and checking
// checkpoints have in common.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/shards.h"

namespace fathom {

struct ListedTensor {
  std::string dtype;           // "BF16"
  std::optional<DType> known;  // null: a type that can be listed but not computed with
  std::vector<int64_t> shape;
  int64_t num_bytes = 0;
};

class InspectTensors {
 public:
  /// @param path a safetensors file, a model directory, torch_dist weights, a directory of training
  /// checkpoints (the newest is meant) or of a run.
  /// Errors: UserError for a damaged file and for a path that holds none of these.
  explicit InspectTensors(const std::string& path);

  bool is_torch_dist() const { return reader_ != nullptr; }
  const std::string& path() const { return path_; }  // of the files with the tensors
  const std::map<std::string, ListedTensor>& tensors() const { return tensors_; }

  /// The row-major bytes of a tensor. Valid until the next call. Errors: UserError for damaged
  /// ones.
  std::span<const uint8_t> read(const std::string& name);

  const TensorShards* shards() const { return shards_.get(); }  // null for torch_dist
  DcpReader* reader() { return reader_.get(); }                 // null for safetensors

 private:
  std::string path_;
  std::unique_ptr<TensorShards> shards_;
  std::unique_ptr<DcpReader> reader_;
  std::map<std::string, ListedTensor> tensors_;
  Tensor held_;
};

}  // namespace fathom
