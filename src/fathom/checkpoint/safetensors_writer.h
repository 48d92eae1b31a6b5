// Writes safetensors files, alone or as shards with an index. A file appears under its name only
// when it is whole, and an index only when all of its shards are there.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

struct TensorSpec {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int64_t num_bytes() const;
};

/// Where everything lies in a file with these tensors.
struct SafetensorsLayout {
  std::vector<TensorSpec> order;  // as the format wants it: dtype by falling alignment, then name
  std::vector<int64_t> offsets;   // of each tensor's bytes in the file
  std::string start;              // the file's bytes before the first tensor
  int64_t num_bytes = 0;          // of the file
};

/// Errors: InternalError for a repeated name.
SafetensorsLayout lay_out_safetensors(std::vector<TensorSpec> specs,
                                      const std::map<std::string, std::string>& metadata = {
                                          {"format", "pt"}});

/// Streams one file: the header is written from the specs, then the tensors in order().
class SafetensorsWriter {
 public:
  /// Sorts the specs as lay_out_safetensors does.
  /// Errors: UserError when the file cannot be made; InternalError for a repeated name.
  SafetensorsWriter(const std::string& path, std::vector<TensorSpec> specs,
                    std::map<std::string, std::string> metadata = {{"format", "pt"}});

  const std::vector<TensorSpec>& order() const { return specs_; }
  /// The next bytes of tensor `name`, in one piece or several. Tensors come in order(), each
  /// completely (InternalError otherwise).
  void write(const std::string& name, const void* data, int64_t num_bytes);
  /// Checks that everything was written and moves the file into place.
  void finish();

 private:
  std::vector<TensorSpec> specs_;
  AtomicFileWriter file_;
  size_t next_ = 0;
  int64_t written_ = 0;  // bytes of specs_[next_]
  void skip_complete();
};

/// Writes whole tensors that are in memory.
void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       std::map<std::string, std::string> metadata = {{"format", "pt"}});

/// "model.safetensors" of one file, else "model-00001-of-00003.safetensors" for index 0 of three.
std::string shard_file_name(size_t index, size_t num_shards);

/// directory/model.safetensors.index.json, atomically. Write it after the last shard.
void write_safetensors_index(const std::string& directory,
                             const std::map<std::string, std::string>& weight_map,
                             int64_t total_bytes);

}  // namespace fathom
