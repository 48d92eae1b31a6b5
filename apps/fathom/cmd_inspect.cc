// What lies at a path: a safetensors file or directory, torch_dist weights, training checkpoints, a
// run.
#include <cstdio>

#include "commands.h"
#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/shards.h"
#include "fathom/checkpoint/training_state.h"
#include "fathom/launch/copy_tree.h"

namespace fathom {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

void print_tensors(const std::string& path) {
  const TensorShards shards(path);
  std::printf("%s: %zu tensors in %zu files, %lld bytes\n", path.c_str(), shards.tensors().size(),
              shards.files().size(), static_cast<long long>(shards.total_bytes()));
  for (const std::string& warning : shards.warnings())
    std::printf("warning: %s\n", warning.c_str());
  for (const auto& [name, tensor] : shards.tensors())
    std::printf("%-60s %-8s %s\n", name.c_str(), std::string(tensor.entry->type->code).c_str(),
                shape_text(tensor.shape()).c_str());
}

void print_dcp(const std::string& path) {
  const DcpReader reader(path);
  std::printf("%s: torch_dist, %zu tensors\n", path.c_str(), reader.metadata().tensors.size());
  for (const auto& [key, tensor] : reader.metadata().tensors)
    std::printf("%-72s %-5s %s in %zu pieces\n", key.c_str(),
                std::string(dtype_name(tensor.dtype)).c_str(), shape_text(tensor.shape).c_str(),
                tensor.chunks.size());
}

void print_training_states(const std::string& path) {
  const std::vector<int64_t> steps = list_training_states(path);
  const auto latest = latest_training_state(path);
  std::printf("%s: training checkpoints of steps", path.c_str());
  for (const int64_t step : steps) std::printf(" %lld", static_cast<long long>(step));
  if (latest) std::printf("; a run goes on after %lld", static_cast<long long>(*latest));
  std::printf("\n");
}

void print_run(const std::string& path) {
  const Json config = read_json_file(join_path(path, "config.json"));
  std::printf("%s: a run of `fathom %s`, configuration %s\n", path.c_str(),
              config.value("command", "?").c_str(), config.value("hash", "?").c_str());
  const std::string metrics = join_path(path, "metrics.jsonl");
  if (file_exists(metrics)) {
    const std::string text = read_file(metrics);
    const size_t end = text.find_last_of('\n');
    const size_t begin = end == std::string::npos || end == 0 ? 0 : text.rfind('\n', end - 1) + 1;
    if (end != std::string::npos)
      std::printf("last metrics: %s\n", text.substr(begin, end - begin).c_str());
  }
  const std::string checkpoints = join_path(path, "checkpoints");
  if (directory_exists(checkpoints)) print_training_states(checkpoints);
}

}  // namespace

int run_inspect(const config::ParsedCommand& command) {
  const std::string& path = *command.options.tool.path;
  const auto has = [&](const char* name) { return file_exists(join_path(path, name)); };
  if (file_exists(path) || has(kShardIndex) || has(kSingleFileName))
    print_tensors(path);
  else if (has("metadata.json"))
    print_dcp(path);
  else if (directory_exists(join_path(path, "release")))
    print_dcp(join_path(path, "release"));
  else if (has(kTracker))
    print_training_states(path);
  else if (has("config.json"))
    print_run(path);
  else
    throw UserError(path +
                    ": neither a checkpoint, nor a torch_dist directory, a safetensors file "
                    "or a run");
  return 0;
}

}  // namespace fathom
