#include "fathom/checkpoint/shards.h"

#include <set>

#include "fathom/base/error.h"
#include "fathom/base/json.h"

namespace fathom {
namespace {

// A shard lies beside its index: the name may not lead anywhere else.
bool is_bare_file_name(std::string_view name) {
  return name.size() > std::string_view(".safetensors").size() && name.ends_with(".safetensors") &&
         name.find_first_of(std::string_view("/\\:\0", 4)) == std::string_view::npos &&
         name.front() != '.';
}

// {tensor name: shard file name}. Not read by parse_json: an index has a hundred thousand keys, and
// objects that keep their order look each of them up in linear time.
std::map<std::string, std::string> read_weight_map(const std::string& path) {
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  auto watch_keys = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  nlohmann::json index;
  try {
    index = nlohmann::json::parse(read_file(path), watch_keys);
  } catch (const nlohmann::json::exception& e) {
    throw UserError(str_cat(path, ": not valid JSON: ", e.what()));
  }
  FATHOM_CHECK(duplicate.empty(), path, ": the key \"", duplicate,
               "\" appears twice in one object");
  FATHOM_CHECK(index.is_object() && index.contains("weight_map") &&
                   index["weight_map"].is_object() && !index["weight_map"].empty(),
               path, ": weight_map must be an object of tensor names and file names");
  std::map<std::string, std::string> weight_map;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    FATHOM_CHECK(file.is_string(), path, ": weight_map: the file of ", tensor,
                 " must be a string, got ", file.dump());
    FATHOM_CHECK(is_bare_file_name(file.get<std::string>()), path, ": weight_map: ", file.dump(),
                 " is not the name of a .safetensors file in the same directory");
    weight_map[tensor] = file.get<std::string>();
  }
  return weight_map;
}

}  // namespace

std::string StoredTensor::describe() const {
  return str_cat("tensor ", entry->name, " (", entry->type->code, " ",
                 shape_to_string(entry->shape), ") in ", base_name(file->path()));
}

TensorShards::TensorShards(const std::string& path) {
  if (file_exists(path)) {
    open_single(path);
  } else if (file_exists(join_path(path, kIndexName))) {
    open_indexed(path);
  } else if (file_exists(join_path(path, kSingleFileName))) {
    open_single(join_path(path, kSingleFileName));
  } else {
    FATHOM_CHECK(directory_exists(path), "no model directory ", path,
                 "\n  fix: give a directory that holds config.json and safetensors files");
    std::string shard;
    for (const std::string& name : list_directory(path)) {
      if (name.ends_with(".safetensors")) shard = name;
    }
    FATHOM_CHECK(shard.empty(), path, ": ", shard, " is there but ", kIndexName,
                 " is not: the download or conversion that made this directory did not finish",
                 "\n  fix: run it again; the index is written last");
    throw UserError(str_cat(path, ": neither ", kIndexName, " nor ", kSingleFileName,
                            "\n  fix: give a directory that holds safetensors weights"));
  }
  for (const auto& file : files_) {
    for (const std::string& w : file->warnings()) warnings_.push_back(file->path() + ": " + w);
  }
}

void TensorShards::open_single(const std::string& path) {
  files_.push_back(std::make_unique<SafetensorsFile>(path));
  for (const TensorEntry& entry : files_[0]->tensors()) {
    tensors_[entry.name] = {files_[0].get(), &entry};
  }
}

void TensorShards::open_indexed(const std::string& directory) {
  has_index_ = true;
  const std::string index_path = join_path(directory, kIndexName);
  const std::map<std::string, std::string> weight_map = read_weight_map(index_path);
  std::set<std::string> file_names;
  for (const auto& [tensor, file] : weight_map) file_names.insert(file);
  std::map<std::string, const SafetensorsFile*> by_name;
  for (const std::string& name : file_names) {
    const std::string path = join_path(directory, name);
    FATHOM_CHECK(file_exists(path), index_path, ": the shard ", name, " is missing",
                 "\n  fix: fetch or write it again");
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    by_name[name] = files_.back().get();
  }
  for (const auto& [tensor, file_name] : weight_map) {
    const SafetensorsFile* file = by_name.at(file_name);
    const TensorEntry* entry = file->find(tensor);
    FATHOM_CHECK(entry != nullptr, index_path, ": tensor ", tensor, " should be in ", file_name,
                 ", which lacks it");
    tensors_[tensor] = {file, entry};
  }
  int64_t unmapped = 0;
  std::string example;
  for (const auto& file : files_) {
    for (const TensorEntry& entry : file->tensors()) {
      const StoredTensor* mapped = find(entry.name);
      if (mapped != nullptr && mapped->file == file.get()) continue;
      if (++unmapped == 1) example = str_cat(entry.name, " in ", base_name(file->path()));
    }
  }
  if (unmapped > 0) {
    warnings_.push_back(str_cat(index_path, ": ", unmapped,
                                " tensors in the shards are not in the index and are ignored, ",
                                "the first is ", example));
  }
}

const StoredTensor* TensorShards::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

int64_t TensorShards::total_bytes() const {
  int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor.entry->num_bytes();
  return total;
}

}  // namespace fathom
