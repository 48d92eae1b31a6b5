#include "fathom/checkpoint/export_hf.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/hub_files.h"
#include "fathom/checkpoint/safetensors_writer.h"
#include "fathom/checkpoint/shards.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

constexpr const char* kLockName = ".export_hf.lock";

enum class Part { kValues, kCodes, kScales };

struct ExportTensor {
  TensorSpec spec;
  Part part = Part::kValues;
  std::vector<const Parameter*> pieces;  // top to bottom
};

int64_t num_blocks(int64_t n) { return (n + kFp8BlockSize - 1) / kFp8BlockSize; }

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
        plan.push_back({{*name, p.export_dtype, {E, rows, p.shape[1]}}, Part::kValues, {}});
      }
      plan[it->second].pieces.push_back(&p);
      return;
    }
    const std::string name = stored_name(p.name, options.names, L);
    if (options.format == ExportFormat::kFp8 && is_exported_as_fp8(p.name)) {
      plan.push_back({{name, DType::kF8E4M3, p.shape}, Part::kCodes, {&p}});
      plan.push_back({{stored_scale_name(p.name, options.names, L),
                       DType::kF8E8M0,
                       {num_blocks(p.shape[0]), num_blocks(p.shape[1])}},
                      Part::kScales,
                      {&p}});
    } else {
      plan.push_back({{name, p.export_dtype, p.shape}, Part::kValues, {&p}});
    }
  });
  return plan;
}

void write_table(const Parameter& p, const std::string& name, SafetensorsWriter& writer) {
  const Tensor table = p.master.to_host();
  std::vector<int64_t> wide(table.i32(), table.i32() + p.numel());
  writer.write(name, wide.data(), static_cast<int64_t>(wide.size() * sizeof(int64_t)));
}

void write_piece(const ExecContext& ctx, const Parameter& p, const ExportTensor& tensor,
                 SafetensorsWriter& writer) {
  const std::string& name = tensor.spec.name;
  if (p.kind == ParameterKind::kTable) return write_table(p, name, writer);
  const int64_t count = p.numel();
  std::vector<float> values(static_cast<size_t>(count));
  p.get_row_major(values.data());
  if (tensor.part != Part::kValues) {
    const int64_t M = p.shape[0], K = p.shape[1];
    std::vector<uint8_t> codes(static_cast<size_t>(count));
    std::vector<uint8_t> scales(static_cast<size_t>(num_blocks(M) * num_blocks(K)));
    with_context(p.name,
                 [&] { quantise_fp8(ctx, M, K, values.data(), codes.data(), scales.data()); });
    const std::vector<uint8_t>& bytes = tensor.part == Part::kCodes ? codes : scales;
    return writer.write(name, bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  const bool narrow = tensor.spec.dtype == DType::kBF16;
  std::vector<uint16_t> bits(narrow ? static_cast<size_t>(count) : 0);
  for (size_t i = 0; i < values.size(); ++i) {
    float stored = values[i];
    if (narrow) {
      bits[i] = f32_to_bf16(values[i]);
      stored = bf16_to_f32(bits[i]);
    }
    FATHOM_CHECK(std::isfinite(stored), p.name, ": element ", i, " is ", values[i],
                 ", which cannot be exported\n  fix: this training run has gone wrong before its ",
                 "checkpoint; export an earlier one");
  }
  if (narrow) {
    writer.write(name, bits.data(), count * 2);
  } else {
    writer.write(name, values.data(), count * 4);
  }
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

Json make_config(const Weights& weights, ExportFormat format) {
  ModelConfig config = weights.config;
  config.num_nextn_predict_layers = static_cast<int64_t>(weights.mtp.size());
  config.compress_ratios.resize(
      static_cast<size_t>(config.num_hidden_layers + config.num_nextn_predict_layers), 0);
  Json json = model_config_to_json(config, "bfloat16");
  if (format == ExportFormat::kFp8) {
    json["expert_dtype"] = "fp8";
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"scale_fmt", "ue8m0"},
                                   {"weight_block_size", {kFp8BlockSize, kFp8BlockSize}}};
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

ExportResult export_hf(const ExecContext& ctx, const Weights& weights,
                       const ExportOptions& options) {
  if (options.format == ExportFormat::kFp8 && options.names == NameDialect::kTransformers) {
    throw ConfigError(
        "FP8 has no form under transformers' own names: give --names official (which "
        "transformers reads too) or --dtype bf16");
  }
  const std::vector<ExportTensor> plan = make_plan(weights, options);
  make_directories(options.output);
  const auto lock = FileLock::try_acquire(join_path(options.output, kLockName));
  FATHOM_CHECK(lock != nullptr, "another process is writing ", options.output,
               "\n  fix: wait for it, or choose another --output");
  check_export_output(options.output);
  remove_unfinished(options.output);
  write_file_atomic(join_path(options.output, "config.json"),
                    make_config(weights, options.format).dump(2) + "\n");
  if (!options.companions.empty()) copy_hub_files(options.companions, options.output);

  std::vector<TensorSpec> specs;
  std::map<std::string, const ExportTensor*> by_name;
  for (const ExportTensor& tensor : plan) {
    specs.push_back(tensor.spec);
    by_name[tensor.spec.name] = &tensor;
  }
  ExportResult result;
  std::map<std::string, std::string> weight_map;
  const std::vector<ShardPlan> shards = plan_shards(specs, options.max_shard_bytes);
  for (const ShardPlan& shard : shards) {
    SafetensorsWriter writer(join_path(options.output, shard.file_name), shard.specs);
    for (const TensorSpec& spec : writer.order()) {
      const ExportTensor& tensor = *by_name.at(spec.name);
      for (const Parameter* p : tensor.pieces) write_piece(ctx, *p, tensor, writer);
      weight_map[spec.name] = shard.file_name;
      result.num_bytes += spec.num_bytes();
      ++result.num_tensors;
    }
    writer.finish();
    ++result.num_shards;
  }
  if (shards.size() > 1) write_safetensors_index(options.output, weight_map, result.num_bytes);
  remove_file(options.output, kLockName);  // whoever comes next finds a complete model
  return result;
}

}  // namespace fathom
