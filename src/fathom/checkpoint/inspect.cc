#include "fathom/checkpoint/inspect.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/training_state.h"

namespace fathom {
namespace {

bool has_file(const std::string& directory, const char* name) {
  return file_exists(join_path(directory, name));
}

void add_tensor(Json& found, const std::string& name, std::string_view dtype,
                const std::vector<int64_t>& shape, int64_t num_bytes) {
  found["tensors"].push_back(
      {{"name", name}, {"dtype", dtype}, {"shape", shape}, {"bytes", num_bytes}});
  Json& type = found["types"][std::string(dtype)];
  if (type.is_null()) type = {{"tensors", 0}, {"bytes", 0}};
  type["tensors"] = type["tensors"].get<int64_t>() + 1;
  type["bytes"] = type["bytes"].get<int64_t>() + num_bytes;
}

Json start(const char* kind, const std::string& path) { return {{"kind", kind}, {"path", path}}; }

Json inspect_shards(const std::string& path) {
  const TensorShards shards(path);
  Json found = start(directory_exists(path) ? "model" : "safetensors", path);
  found["num_files"] = shards.files().size();
  found["num_tensors"] = shards.tensors().size();
  found["bytes"] = shards.total_bytes();
  std::vector<std::string> names;
  for (const auto& [name, tensor] : shards.tensors()) names.push_back(name);
  found["names"] = name_dialect_to_string(detect_name_dialect(names));
  if (!shards.warnings().empty()) found["warnings"] = shards.warnings();
  found["types"] = Json::object();
  found["tensors"] = Json::array();
  for (const auto& [name, tensor] : shards.tensors()) {
    add_tensor(found, name, tensor.entry->type->code, tensor.shape(), tensor.entry->num_bytes());
  }
  if (!directory_exists(path)) found.erase("names");
  return found;
}

// The sizes of the model, and whether the tensors are the ones that it needs.
void add_model(const std::string& path, Json& found) {
  try {
    const ModelTensors tensors(path);
    const ModelConfig& c = tensors.config();
    int64_t num_parameters = 0, num_fp8 = 0, num_fp4 = 0;
    for (const auto& [name, source] : tensors.sources()) {
      num_parameters += source.num_rows * source.tensor->num_cols();
      num_fp8 += source.tensor->encoding == Encoding::kFp8Blocks ? 1 : 0;
      num_fp4 += source.tensor->encoding == Encoding::kFp4Groups ? 1 : 0;
    }
    found["model"] = {{"parameters", num_parameters},
                      {"layers", c.num_hidden_layers},
                      {"mtp_modules", c.num_nextn_predict_layers},
                      {"hidden_size", c.hidden_size},
                      {"heads", c.num_attention_heads},
                      {"head_dim", c.head_dim},
                      {"experts", c.n_routed_experts},
                      {"experts_per_token", c.num_experts_per_tok},
                      {"vocabulary", c.vocab_size},
                      {"compress_ratios", c.compress_ratios},
                      {"fp8_weights", num_fp8},
                      {"fp4_weights", num_fp4}};
    if (!tensors.notes().empty()) found["notes"] = tensors.notes();
  } catch (const UserError& e) {
    found["problem"] = e.what();
  }
}

// How the tensors are cut and laid out, and the sizes of the job that wrote them, where it said so.
Json describe_layout(const DcpReader& reader) {
  std::set<std::string> files, ranks;
  int64_t num_chunks = 0, num_cut = 0;
  const auto note = [&](const std::string& file) {  // "__<rank>_<n>.distcp"
    files.insert(file);
    ranks.insert(file.substr(0, file.rfind('_')));
  };
  for (const auto& [key, tensor] : reader.metadata().tensors) {
    for (const DcpChunk& chunk : tensor.chunks) note(chunk.file);
    num_chunks += static_cast<int64_t>(tensor.chunks.size());
    num_cut += tensor.chunks.size() > 1 ? 1 : 0;
  }
  for (const auto& [key, bytes] : reader.metadata().bytes) note(bytes.file);
  return {{"files", files.size()},
          {"ranks", ranks.size()},
          {"chunks", num_chunks},
          {"tensors_in_pieces", num_cut},
          {"objects", reader.metadata().bytes.size()}};
}

void add_job(const DcpReader& reader, Json& found) {
  if (!file_exists(join_path(reader.directory(), "common.pt"))) return;
  const Json common = reader.read_common();
  if (!common.is_object()) return;
  if (common.contains("iteration")) found["step"] = common["iteration"];
  if (!common.contains("args") || !common["args"].is_object()) return;
  for (const char* name :
       {"world_size", "tensor_model_parallel_size", "pipeline_model_parallel_size",
        "expert_model_parallel_size", "expert_tensor_parallel_size", "context_parallel_size"})
    if (common["args"].contains(name)) found["layout"][name] = common["args"][name];
}

Json inspect_torch_dist(const std::string& path) {
  const DcpReader reader(path);
  Json found = start("torch_dist", path);
  found["layout"] = describe_layout(reader);
  add_job(reader, found);
  found["num_tensors"] = reader.metadata().tensors.size();
  found["types"] = Json::object();
  found["tensors"] = Json::array();
  for (const auto& [key, tensor] : reader.metadata().tensors) {
    int64_t num_bytes = dtype_size(tensor.dtype);
    for (const int64_t d : tensor.shape) num_bytes *= d;
    add_tensor(found, key, dtype_name(tensor.dtype), tensor.shape, num_bytes);
    found["bytes"] = found.value("bytes", int64_t{0}) + num_bytes;
  }
  return found;
}

Json inspect_checkpoints(const std::string& path) {
  Json found = start("checkpoints", path);
  found["steps"] = list_training_states(path);
  const auto latest = latest_training_state(path);
  found["latest"] = latest ? Json(*latest) : Json(nullptr);
  return found;
}

Json inspect_run(const std::string& path) {
  const Json config = read_json_file(join_path(path, "config.json"));
  Json found = start("run", path);
  found["command"] = config.value("command", "");
  found["hash"] = config.value("hash", "");
  const std::string metrics = join_path(path, "metrics.jsonl");
  if (file_exists(metrics)) {
    const std::string text = read_file(metrics);
    const size_t end = text.find_last_of('\n');  // a line that is being written has none yet
    const size_t begin = end == std::string::npos || end == 0 ? 0 : text.rfind('\n', end - 1) + 1;
    if (end != std::string::npos && end > begin) {
      found["last_metrics"] = parse_json(text.substr(begin, end - begin), metrics);
    }
  }
  const std::string checkpoints = join_path(path, "checkpoints");
  if (directory_exists(checkpoints)) found["checkpoints"] = inspect_checkpoints(checkpoints);
  return found;
}

// "layers.3.ffn.experts.17.w1.weight" -> "layers.*.ffn.experts.*.w1.weight"
std::string without_numbers(const std::string& name) {
  std::string out, part;
  for (const char c : name + ".") {
    if (c != '.') {
      part += c;
      continue;
    }
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    if (!out.empty()) out += '.';
    out += number ? "*" : part.c_str();
    part.clear();
  }
  return out;
}

std::string padded(std::string text, size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

std::string tensor_lines(const Json& tensors) {
  struct Line {
    std::string name, rest;
    int64_t count = 0;
  };
  std::vector<Line> lines;
  std::map<std::string, size_t> known;
  size_t width = 0;
  for (const Json& t : tensors) {
    const std::string name = without_numbers(t["name"].get<std::string>());
    const std::string rest = padded(t["dtype"].get<std::string>(), 8) + " " +
                             shape_to_string(t["shape"].get<std::vector<int64_t>>());
    const auto [it, fresh] = known.emplace(name + " " + rest, lines.size());
    if (fresh) lines.push_back({name, rest, 0});
    ++lines[it->second].count;
    width = std::max(width, name.size());
  }
  std::string text;
  for (const Line& line : lines) {
    text += str_cat("  ", padded(line.name, width), "  ", line.rest);
    text += line.count > 1 ? str_cat("  x ", line.count, "\n") : "\n";
  }
  return text;
}

std::string checkpoints_line(const Json& found) {
  std::string text = "training checkpoints of steps";
  for (const Json& step : found["steps"]) text += str_cat(" ", step.dump());
  if (found["steps"].empty()) text += " (none)";
  if (!found["latest"].is_null()) text += "; a run goes on after " + found["latest"].dump();
  return text + "\n";
}

}  // namespace

Json inspect_path(const std::string& path) {
  if (file_exists(path)) return inspect_shards(path);
  FATHOM_CHECK(directory_exists(path), "nothing at ", path);
  if (has_file(path, kIndexName) || has_file(path, kSingleFileName)) {
    Json found = inspect_shards(path);
    const std::string record = join_path(path, ".cache/huggingface/fathom.json");
    if (file_exists(record)) found["download"] = read_json_file(record);
    add_model(path, found);
    return found;
  }
  if (has_file(path, "metadata.json")) return inspect_torch_dist(path);
  if (file_exists(tracker_path(path))) {
    if (read_tracker(path) == "release") return inspect_torch_dist(resolve_checkpoint(path));
    return inspect_checkpoints(path);
  }
  if (has_file(path, "config.json") &&
      (directory_exists(join_path(path, "checkpoints")) || has_file(path, "metrics.jsonl"))) {
    return inspect_run(path);
  }
  throw UserError(str_cat(path, ": neither a model, nor torch_dist weights, training checkpoints, ",
                          "a safetensors file or a run"));
}

std::string inspect_table(const Json& found) {
  const std::string kind = found["kind"];
  std::string text = found["path"].get<std::string>() + ": ";
  if (kind == "run") {
    text += str_cat("a run of `fathom ", found["command"].get<std::string>(), "`, configuration ",
                    found["hash"].get<std::string>(), "\n");
    if (found.contains("last_metrics")) {
      text += "last metrics: " + found["last_metrics"].dump() + "\n";
    }
    if (found.contains("checkpoints")) text += checkpoints_line(found["checkpoints"]);
    return text;
  }
  if (kind == "checkpoints") return text + checkpoints_line(found);

  text += str_cat(kind == "model"        ? "a model"
                  : kind == "torch_dist" ? "torch_dist"
                                         : "safetensors",
                  ", ", found["num_tensors"].dump(), " tensors, ", found["bytes"].dump(), " bytes");
  if (found.contains("num_files")) text += ", " + found["num_files"].dump() + " files";
  if (found.contains("names")) text += ", " + found["names"].get<std::string>() + " names";
  if (found.contains("step")) text += ", step " + found["step"].dump();
  text += "\n";
  if (found.contains("download")) text += "downloaded: " + found["download"].dump() + "\n";
  if (found.contains("layout")) {
    for (const auto& item : found["layout"].items())
      text += str_cat("  ", padded(item.key(), 29), item.value().dump(), "\n");
  }
  if (found.contains("model")) {
    for (const auto& item : found["model"].items()) {
      text += str_cat("  ", padded(item.key(), 18), item.value().dump(), "\n");
    }
  }
  for (const auto& item : found["types"].items()) {
    text += str_cat("  ", padded(item.key(), 18), item.value()["tensors"].dump(), " tensors, ",
                    item.value()["bytes"].dump(), " bytes\n");
  }
  for (const char* field : {"warnings", "notes"}) {
    if (!found.contains(field)) continue;
    for (const Json& line : found[field]) text += line.get<std::string>() + "\n";
  }
  if (found.contains("problem")) text += "problem: " + found["problem"].get<std::string>() + "\n";
  return text + tensor_lines(found["tensors"]);
}

}  // namespace fathom
