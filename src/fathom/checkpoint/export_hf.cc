#include "fathom/checkpoint/export_hf.h"

#include <filesystem>
#include <map>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/export_directory.h"
#include "fathom/checkpoint/export_files.h"
#include "fathom/checkpoint/hub_files.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

constexpr const char* kLockName = ".export_hf.lock";

std::vector<ExportTensor> make_plan(const Weights& weights, const ExportOptions& options) {
  const int64_t L = weights.config.num_hidden_layers, E = weights.config.n_routed_experts;
  std::vector<ExportTensor> plan;
  std::map<std::string, size_t> fused;  // position in plan
  // A fused tensor takes the rows of w1 and w3 of each expert in turn, but the walk meets w2
  // between them, so pieces go to their tensor as they come.
  for_each_parameter(weights, [&](const Parameter& p) {
    if (const auto name = fused_stored_name(p.name, options.names)) {
      const auto [it, fresh] = fused.emplace(*name, plan.size());
      if (fresh) {
        const int64_t rows = p.shape[0] * (name->ends_with("gate_up_proj") ? 2 : 1);
        plan.push_back({{*name, p.export_dtype, {E, rows, p.shape[1]}}, std::nullopt, {}, nullptr});
      }
      plan[it->second].pieces.push_back(&p);
      return;
    }
    const bool as_fp8 = options.format == ExportFormat::kFp8 && is_exported_as_fp8(p.name);
    plan.push_back(make_export_tensor(stored_name(p.name, options.names, L),
                                      as_fp8 ? stored_scale_name(p.name, options.names, L) : "", p,
                                      as_fp8, options));
  });
  return plan;
}

// Greedily, in the order of the plan; a weight and its scale stay together.
std::vector<ExportFile> share_out(std::vector<ExportTensor> plan, int64_t max_shard_bytes) {
  std::vector<ExportFile> files(1);
  int64_t size = 0;
  for (ExportTensor& t : plan) {
    const int64_t n = t.spec.num_bytes() + (t.scale ? t.scale->num_bytes() : 0);
    if (size > 0 && size + n > max_shard_bytes) {
      files.emplace_back();
      size = 0;
    }
    size += n;
    files.back().tensors.push_back(std::move(t));
  }
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name = shard_file_name(i, files.size());
  }
  return files;
}

void remove_file(const std::string& directory, const std::string& name) {
  std::error_code error;
  std::filesystem::remove(join_path(directory, name), error);
  FATHOM_CHECK(!error, "cannot remove ", name, " in ", directory, ": ", error.message());
}

// Weights of an export that did not finish.
void remove_unfinished(const std::string& output) {
  for (const std::string& name : list_directory(output)) {
    if (name.find(".safetensors") != std::string::npos) remove_file(output, name);
  }
}

Json make_config(const Weights& weights, const ExportOptions& options) {
  ModelConfig config = weights.config;
  config.num_nextn_predict_layers = static_cast<int64_t>(weights.mtp.size());
  config.compress_ratios.resize(
      static_cast<size_t>(config.num_hidden_layers + config.num_nextn_predict_layers), 0);
  Json json = model_config_to_json(config, "bfloat16");
  if (options.format == ExportFormat::kFp8) {
    json["expert_dtype"] = "fp8";
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {kFp8BlockSize, kFp8BlockSize}}};
    if (options.scales == ExportScales::kE8m0) {
      json["quantization_config"]["scale_fmt"] = "ue8m0";
    }
  }
  return json;
}

}  // namespace

void check_export_output(const std::string& output) {
  for (const char* name : {kIndexName, kSingleFileName}) {
    FATHOM_CHECK(!file_exists(join_path(output, name)), output, " holds a complete model: ", name,
                 "\n  fix: choose another --output, or remove this one");
  }
}

bool is_exported_as_fp8(const std::string& official) {
  if (official.find(".ffn.experts.") != std::string::npos ||
      official.find(".ffn.shared_experts.") != std::string::npos) {
    return true;
  }
  for (const char* suffix : {".attn.wq_a.weight", ".attn.wq_b.weight", ".attn.wkv.weight",
                             ".attn.wo_b.weight", ".attn.indexer.wq_b.weight"}) {
    if (official.ends_with(suffix)) return true;
  }
  return false;
}

ExportDirectory::ExportDirectory(std::string path) : path_(std::move(path)) {
  make_directories(path_);
  lock_ = FileLock::try_acquire(join_path(path_, kLockName));
  FATHOM_CHECK(lock_ != nullptr, "another process is writing ", path_,
               "\n  fix: wait for it, or choose another --output");
  check_export_output(path_);
  remove_unfinished(path_);
}

void ExportDirectory::finish() {
  remove_file(path_, kLockName);  // whoever comes next finds a complete model
}

ExportResult export_hf(const ExecContext& ctx, const ExportSource& source,
                       const ExportOptions& options) {
  if (options.format == ExportFormat::kFp8 && options.names == NameDialect::kTransformers) {
    throw ConfigError(
        "FP8 has no form under transformers' own names: give --names official (which "
        "transformers reads too) or --dtype bf16");
  }
  const Weights& weights = source.model();
  const std::vector<ExportFile> files =
      share_out(make_plan(weights, options), options.max_shard_bytes);
  ExportDirectory output(options.output);
  write_file_atomic(join_path(options.output, "config.json"),
                    make_config(weights, options).dump(2) + "\n");
  if (!options.companions.empty()) copy_hub_files(options.companions, options.output);
  const ExportResult result = write_export_files(ctx, source, files, options);
  if (files.size() > 1) {
    std::map<std::string, std::string> weight_map;
    for (const ExportFile& file : files) {
      for (const ExportTensor& t : file.tensors) {
        weight_map[t.spec.name] = file.name;
        if (t.scale) weight_map[t.scale->name] = file.name;
      }
    }
    write_safetensors_index(options.output, weight_map, result.num_bytes);
  }
  output.finish();
  return result;
}

ExportResult export_hf(const ExecContext& ctx, const Weights& weights,
                       const ExportOptions& options) {
  return export_hf(ctx, *export_from_memory(weights), options);
}

}  // namespace fathom
