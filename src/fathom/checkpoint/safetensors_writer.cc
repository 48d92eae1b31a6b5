#include "fathom/checkpoint/safetensors_writer.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/json.h"

namespace fathom {

int64_t TensorSpec::num_bytes() const {
  int64_t n = dtype_size(dtype);
  for (const int64_t d : shape) n *= d;
  return n;
}

namespace {

std::vector<TensorSpec> sorted(std::vector<TensorSpec> specs) {
  // DType lists the types in the format's order, narrow ones first.
  std::sort(specs.begin(), specs.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  return specs;
}

}  // namespace

SafetensorsLayout lay_out_safetensors(std::vector<TensorSpec> specs,
                                      const std::map<std::string, std::string>& metadata) {
  SafetensorsLayout layout;
  layout.order = sorted(std::move(specs));
  std::set<std::string_view> names;
  for (const TensorSpec& spec : layout.order) {
    FATHOM_ASSERT(names.insert(spec.name).second, spec.name, " is written twice");
  }
  // Built as text: looking names up in a JSON object that keeps its order takes quadratic time.
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
  int64_t position = 0;
  for (const TensorSpec& spec : layout.order) {
    const int64_t end = position + spec.num_bytes();
    text += str_cat(text.size() > 1 ? "," : "", Json(spec.name).dump(), ":{\"dtype\":\"",
                    dtype_name(spec.dtype), "\",\"shape\":", Json(spec.shape).dump(),
                    ",\"data_offsets\":[", position, ",", end, "]}");
    layout.offsets.push_back(position);
    position = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data starts on a multiple of 8
  const uint64_t size = text.size();
  layout.start.assign(reinterpret_cast<const char*>(&size), sizeof size);
  layout.start += text;
  const auto start = static_cast<int64_t>(layout.start.size());
  for (int64_t& offset : layout.offsets) offset += start;
  layout.num_bytes = start + position;
  return layout;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<TensorSpec> specs,
                                     std::map<std::string, std::string> metadata)
    : file_(path) {
  SafetensorsLayout layout = lay_out_safetensors(std::move(specs), metadata);
  specs_ = std::move(layout.order);
  file_.write(layout.start.data(), static_cast<int64_t>(layout.start.size()));
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (next_ < specs_.size() && written_ == specs_[next_].num_bytes()) {
    ++next_;
    written_ = 0;
  }
}

void SafetensorsWriter::write(const std::string& name, const void* data, int64_t num_bytes) {
  if (num_bytes == 0) return;
  FATHOM_ASSERT(next_ < specs_.size() && specs_[next_].name == name, name, " is not next");
  FATHOM_ASSERT(written_ + num_bytes <= specs_[next_].num_bytes(), name, " gets too many bytes");
  file_.write(data, num_bytes);
  written_ += num_bytes;
  skip_complete();
}

void SafetensorsWriter::finish() {
  FATHOM_ASSERT(next_ == specs_.size(), specs_[next_].name, " is not complete");
  file_.finish();
}

void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       std::map<std::string, std::string> metadata) {
  std::vector<TensorSpec> specs;
  std::map<std::string, const Tensor*> by_name;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, tensor.dtype(), tensor.shape()});
    by_name[name] = &tensor;
  }
  SafetensorsWriter writer(path, std::move(specs), std::move(metadata));
  for (const TensorSpec& spec : writer.order()) {
    const Tensor& tensor = *by_name.at(spec.name);
    writer.write(spec.name, tensor.bytes(), tensor.num_bytes());
  }
  writer.finish();
}

std::string shard_file_name(size_t index, size_t num_shards) {
  if (num_shards == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", index + 1, num_shards);
  return name;
}

void write_safetensors_index(const std::string& directory,
                             const std::map<std::string, std::string>& weight_map,
                             int64_t total_bytes) {
  Json index;
  index["metadata"]["total_size"] = total_bytes;
  index["weight_map"] = weight_map;
  write_file_atomic(join_path(directory, "model.safetensors.index.json"), index.dump(2) + "\n");
}

}  // namespace fathom
