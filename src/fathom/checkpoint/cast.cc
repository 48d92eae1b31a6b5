#include "fathom/checkpoint/cast.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/base/json.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/hub_files.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/row_tasks.h"
#include "fathom/checkpoint/safetensors_writer.h"

namespace fathom {
namespace {

constexpr int64_t kPieceBytes = 4 << 20;                    // decoded at once by a thread
constexpr const char* kStateName = ".prepare_single.json";  // whose cast a directory holds
constexpr const char* kLockName = ".prepare_single.lock";

struct CastTensor {
  TensorSpec spec;
  std::vector<ModelTensors::Source> pieces;  // its rows, top to bottom
};
using ShardTensors = std::map<std::string, CastTensor>;  // by stored name
using CastPlan = std::map<std::string, ShardTensors>;    // by shard file name

CastPlan make_plan(const ModelTensors& tensors, NameDialect dialect) {
  const ModelConfig& c = tensors.config();
  CastPlan plan;
  // Experts in the order of their numbers, w1 before w3: the order of rows in a fused tensor.
  std::map<std::string, std::map<std::pair<int64_t, std::string>, ModelTensors::Source>> fused;
  for (const auto& [official, source] : tensors.sources()) {
    if (const auto name = fused_stored_name(official, dialect)) {
      const auto expert = parse_expert_name(official);
      fused[*name][{expert->expert, expert->matrix}] = source;
      continue;
    }
    const EncodedTensor& t = *source.tensor;
    std::vector<int64_t> shape = t.shape;
    if (shape.size() == 3) shape = {source.num_rows, t.num_cols()};  // one expert of a fused tensor
    const std::string name = stored_name(official, dialect, c.num_hidden_layers);
    plan[base_name(t.weight.file->path())][name] = {{name, t.dtype, shape}, {source}};
  }
  for (const auto& [name, sources] : fused) {
    CastTensor out;
    int64_t rows = 0;
    const EncodedTensor& first = *sources.begin()->second.tensor;
    for (const auto& [key, source] : sources) {
      FATHOM_CHECK(source.tensor->dtype == first.dtype, first.weight.describe(), " and ",
                   source.tensor->weight.describe(), " decode to different types and cannot form ",
                   name, "\n  fix: choose --names official or sglang");
      rows += source.num_rows;
      out.pieces.push_back(source);
    }
    out.spec = {
        name, first.dtype, {c.n_routed_experts, rows / c.n_routed_experts, first.num_cols()}};
    plan[base_name(first.weight.file->path())][name] = std::move(out);
  }
  return plan;
}

// What identifies a cast: the input files and the names. Times are part of it, so weights that were
// trained further under the same names are cast again.
Json describe_job(const ModelTensors& tensors, NameDialect dialect) {
  Json job;
  job["names"] = name_dialect_to_string(dialect);
  job["config"] = sha256_hex(read_file(join_path(tensors.directory(), "config.json")));
  job["shards"] = Json::array();
  for (const auto& file : tensors.shards().files()) {
    struct stat info {};
    FATHOM_CHECK(::stat(file->path().c_str(), &info) == 0, "cannot read ", file->path());
    job["shards"].push_back(
        {{"name", base_name(file->path())},
         {"bytes", static_cast<int64_t>(info.st_size)},
         {"modified", info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec}});
  }
  return job;
}

// Whether the file is a finished shard of this plan. A file under its own name was written whole.
bool is_finished(const std::string& path, const ShardTensors& planned) {
  if (!file_exists(path)) return false;
  try {
    const SafetensorsFile file(path);
    if (file.tensors().size() != planned.size()) return false;
    for (const TensorEntry& entry : file.tensors()) {
      const auto it = planned.find(entry.name);
      if (it == planned.end() || entry.type->dtype != it->second.spec.dtype ||
          entry.shape != it->second.spec.shape) {
        return false;
      }
    }
    return true;
  } catch (const UserError&) {
    return false;
  }
}

// Decodes the given shards into their files, all in one stream of tasks.
void write_shards(const ExecContext& ctx, const std::string& output,
                  const std::vector<std::pair<std::string, const ShardTensors*>>& shards) {
  std::vector<StreamFile> files;
  std::vector<StreamItem> items;
  RowTasks tasks;
  int64_t total = 0, to_allocate = 0;
  for (const auto& [name, tensors] : shards) {
    std::vector<TensorSpec> specs;
    for (const auto& [stored, tensor] : *tensors) specs.push_back(tensor.spec);
    SafetensorsLayout layout = lay_out_safetensors(std::move(specs));
    for (size_t i = 0; i < layout.order.size(); ++i) {
      const TensorSpec& spec = layout.order[i];
      StreamItem item;
      item.file = files.size();
      item.offset = layout.offsets[i];
      item.num_bytes = spec.num_bytes();
      int64_t row = 0;
      for (const ModelTensors::Source& piece : tensors->at(spec.name).pieces) {
        const int64_t end = piece.first_row + piece.num_rows;
        tasks.add(*piece.tensor, piece.first_row, end, RowTarget::kAsDecoded,
                  {{items.size(), row, piece.first_row, end, 0, piece.tensor->num_cols()}},
                  kPieceBytes);
        row += piece.num_rows;
      }
      items.push_back(std::move(item));
    }
    files.push_back({join_path(output, name), layout.num_bytes, std::move(layout.start)});
    to_allocate += layout.num_bytes;
  }
  check_free_space("prepare-single", output, to_allocate, "--output-bf16-hf-path");
  for (const RowTask& task : tasks.tasks) total += row_task_bytes(task);
  const int threads = num_stream_threads(ctx.threads->num_threads());
  StreamWriter writer(files, std::move(items), std::vector<bool>(files.size(), true));
  RowConverter converter(ctx, tasks, writer, /*check_finite=*/false, threads);
  ByteProgress progress("prepare-single", total);
  const auto count = static_cast<int64_t>(tasks.tasks.size());
  try {
    run_stream_tasks(threads, count, [&](int64_t i, int thread) {
      converter.prefetch(i + threads);
      progress.add(converter.run(i, thread));
    });
  } catch (...) {
    progress.finish();
    writer.discard();
    throw;
  }
  progress.finish();
}

void remove_file(const std::string& path) {
  std::error_code error;
  std::filesystem::remove(path, error);
  FATHOM_CHECK(!error, "cannot remove ", path, ": ", error.message());
}

// transformers derives its own fields from compress_ratios for ratios 0, 4 and 128 alone.
void add_layer_types(const ModelConfig& parsed, Json& config) {
  const Json ours = model_config_to_json(parsed, "");
  for (const char* field : {"layer_types", "compress_rates", "mlp_layer_types"}) {
    if (!config.contains(field) && ours.contains(field)) config[field] = ours[field];
  }
}

// "<name>.<process id>.tmp": what AtomicFileWriter writes into, left by a process that was killed.
bool is_temporary(const std::string& name) {
  if (!name.ends_with(".tmp")) return false;
  const std::string stem = name.substr(0, name.size() - 4);
  const size_t dot = stem.rfind('.');
  return dot != std::string::npos && dot + 1 < stem.size() &&
         stem.find_first_not_of("0123456789", dot + 1) == std::string::npos;
}

// Looks at what an earlier run left. @return whether the cast is complete already.
bool prepare_output(const std::string& output, const Json& job) {
  const std::string state_path = join_path(output, kStateName);
  const std::string index_path = join_path(output, kIndexName);
  const bool same = file_exists(state_path) && read_json_file(state_path) == job;
  if (same && file_exists(index_path)) return true;
  const bool ours = file_exists(state_path);
  if (ours && !same) log_info(output, " holds the cast of another input; it is made again");
  // The index goes first: without it nobody takes the directory for complete.
  if (ours && file_exists(index_path)) remove_file(index_path);
  for (const std::string& name : list_directory(output)) {
    const bool weights = name.ends_with(".safetensors") || name == kIndexName;
    FATHOM_CHECK(ours || !weights, output, " holds weights that are no cast of ours: ", name,
                 "\n  fix: choose another output directory, or empty this one");
    const bool left_over = is_temporary(name) || name.ends_with(".safetensors.tmp");
    if (left_over || (weights && !same)) remove_file(join_path(output, name));
  }
  write_file_atomic(state_path, job.dump(2) + "\n");
  return false;
}

}  // namespace

PrepareSingleResult prepare_single(const ExecContext& ctx, const PrepareSingleOptions& options) {
  const ModelTensors tensors(options.input, /*with_mtp=*/true, ScaleCheck::kFp4WhenDecoded);
  for (const std::string& note : tensors.notes()) log_info("note: ", note);
  const CastPlan plan = make_plan(tensors, options.names);

  make_directories(options.output);
  FATHOM_CHECK(!std::filesystem::equivalent(options.input, options.output), options.output,
               " is the input directory\n  fix: choose another output directory");
  const auto lock = FileLock::try_acquire(join_path(options.output, kLockName));
  FATHOM_CHECK(lock != nullptr, "another process is writing ", options.output,
               "\n  fix: wait for it, or choose another output directory");

  PrepareSingleResult result;
  std::map<std::string, std::string> weight_map;
  bool was_quantised = false;
  for (const auto& [file_name, shard] : plan) {
    for (const auto& [name, tensor] : shard) {
      weight_map[name] = file_name;
      result.num_bytes += tensor.spec.num_bytes();
      for (const auto& piece : tensor.pieces) {
        was_quantised |= piece.tensor->encoding != Encoding::kPlain;
      }
    }
  }
  if (prepare_output(options.output, describe_job(tensors, options.names))) {
    result.num_shards_kept = static_cast<int64_t>(plan.size());
    log_info(options.output, " is complete already");
    return result;
  }
  Json config =
      decoded_config(read_json_file(join_path(options.input, "config.json")), was_quantised);
  if (options.names == NameDialect::kTransformers) add_layer_types(tensors.config(), config);
  write_file_atomic(join_path(options.output, "config.json"), config.dump(2) + "\n");
  copy_hub_files(options.input, options.output);
  std::vector<std::pair<std::string, const ShardTensors*>> missing;
  for (const auto& [file_name, shard] : plan) {
    if (!is_finished(join_path(options.output, file_name), shard)) {
      missing.emplace_back(file_name, &shard);
    }
  }
  result.num_shards_written = static_cast<int64_t>(missing.size());
  result.num_shards_kept = static_cast<int64_t>(plan.size() - missing.size());
  if (result.num_shards_kept > 0) {
    log_info("prepare-single: ", result.num_shards_kept, " files are there from an earlier run");
  }
  write_shards(ctx, options.output, missing);
  log_info("prepare-single: ", weight_map.size(), " tensors, ", result.num_bytes, " bytes in ",
           plan.size(), plan.size() == 1 ? " file" : " files", " of ", options.output);
  write_safetensors_index(options.output, weight_map, result.num_bytes);
  return result;
}

}  // namespace fathom
