// The tensors of a model directory: one safetensors file, or shards resolved through their index.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/checkpoint/safetensors.h"

namespace fathom {

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleFileName = "model.safetensors";

/// One tensor of a directory. Valid as long as the TensorShards it came from.
struct StoredTensor {
  const SafetensorsFile* file = nullptr;
  const TensorEntry* entry = nullptr;
  const std::string& name() const { return entry->name; }
  const std::vector<int64_t>& shape() const { return entry->shape; }
  const uint8_t* data() const { return file->data(*entry); }
  /// "tensor layers.0.attn.wq_a.weight (F8_E4M3 [64, 128]) in model-00001-of-00003.safetensors"
  std::string describe() const;
};

class TensorShards {
 public:
  /// @param path a directory with model.safetensors.index.json or model.safetensors, or one
  /// .safetensors file.
  /// Errors: UserError when there is neither, for a broken index or shard, a shard name that leaves
  /// the directory, a missing shard, or a tensor that its shard lacks.
  explicit TensorShards(const std::string& path);

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }  // by name
  const StoredTensor* find(const std::string& name) const;  // null when there is none
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }  // by name
  bool has_index() const { return has_index_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  int64_t total_bytes() const;  // of the tensors

 private:
  void open_indexed(const std::string& directory);
  void open_single(const std::string& path);
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, StoredTensor> tensors_;
  std::vector<std::string> warnings_;
  bool has_index_ = false;
};

}  // namespace fathom
