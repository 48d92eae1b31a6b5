#include "fathom/checkpoint/inspect_tensors.h"

#include "fathom/base/file.h"
#include "fathom/checkpoint/any_weights.h"

namespace fathom {

InspectTensors::InspectTensors(const std::string& path) : path_(path) {
  // A model without config.json still has tensors to look at.
  const bool is_safetensors = file_exists(path) || file_exists(join_path(path, kIndexName)) ||
                              file_exists(join_path(path, kSingleFileName));
  WeightsPlace place{WeightsPlace::Kind::kModelDirectory, path, ""};
  if (!is_safetensors) place = find_weights(path);
  path_ = place.path;
  if (place.kind == WeightsPlace::Kind::kModelDirectory) {
    shards_ = std::make_unique<TensorShards>(path_);
    for (const auto& [name, tensor] : shards_->tensors()) {
      const FileDType& type = *tensor.entry->type;
      tensors_[name] = {std::string(type.code), type.dtype, tensor.shape(),
                        tensor.entry->num_bytes()};
    }
    return;
  }
  reader_ = std::make_unique<DcpReader>(path_);
  for (const auto& [key, tensor] : reader_->metadata().tensors) {
    int64_t num_bytes = dtype_size(tensor.dtype);
    for (const int64_t d : tensor.shape) num_bytes *= d;
    tensors_[key] = {std::string(dtype_name(tensor.dtype)), tensor.dtype, tensor.shape, num_bytes};
  }
}

std::span<const uint8_t> InspectTensors::read(const std::string& name) {
  const auto num_bytes = static_cast<size_t>(tensors_.at(name).num_bytes);
  if (shards_) return {shards_->find(name)->data(), num_bytes};
  held_ = reader_->read(name);
  return {static_cast<const uint8_t*>(held_.bytes()), num_bytes};
}

}  // namespace fathom
