// export_hf_over: what has not changed is copied from the original.
#include <atomic>
#include <cstring>
#include <map>
#include <memory>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/export_directory.h"
#include "fathom/checkpoint/export_files.h"
#include "fathom/checkpoint/hub_files.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/stream_files.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

// A stored tensor of the original and the parameters that are its rows.
struct Original {
  const EncodedTensor* tensor = nullptr;
  std::map<int64_t, const Parameter*> pieces;  // by first row
  std::atomic<bool> has_changed{false};
};
using Originals = std::map<const TensorEntry*, std::unique_ptr<Original>>;  // by the weight's entry

Originals match(const ModelTensors& original, const Weights& weights) {
  Originals all;
  for_each_parameter(weights, [&](const Parameter& p) {
    const auto it = original.sources().find(p.name);
    FATHOM_CHECK(it != original.sources().end(), original.directory(), " has no tensor ", p.name,
                 ", which the weights hold\n  fix: give the checkpoint that they come from");
    const ModelTensors::Source& s = it->second;
    std::unique_ptr<Original>& entry = all[s.tensor->weight.entry];
    if (!entry) entry = std::make_unique<Original>();
    entry->tensor = s.tensor;
    entry->pieces[s.first_row] = &p;
  });
  return all;
}

class Comparison {
 public:
  Comparison(const ExecContext& ctx, const ExportSource& weights, int64_t num_experts)
      : ctx_(ctx), weights_(weights), num_experts_(num_experts) {}

  void run(Originals& originals, int64_t piece_bytes) {
    struct Task {
      Original* original;
      const Parameter* p;
      int64_t first_row, begin, end;
    };
    std::vector<Task> tasks;
    int64_t total = 0;
    for (auto& [entry, original] : originals) {
      total += entry->num_bytes();
      for (const auto& [first_row, p] : original->pieces) {
        const int64_t rows = parameter_rows(*p);
        const int64_t fit = piece_bytes / std::max<int64_t>(1, 4 * parameter_cols(*p));
        const int64_t step = p->kind == ParameterKind::kTable
                                 ? rows
                                 : std::max<int64_t>(1, fit / kFp8BlockSize) * kFp8BlockSize;
        for (int64_t row = 0; row < rows; row += step) {
          tasks.push_back({original.get(), p, first_row, row, std::min(rows, row + step)});
        }
      }
    }
    ByteProgress progress("export-hf: comparing", total);
    run_stream_tasks(num_stream_threads(ctx_.threads->num_threads()),
                     static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
                       const Task& t = tasks[static_cast<size_t>(i)];
                       if (t.original->has_changed.load()) return;
                       const EncodedTensor& e = *t.original->tensor;
                       const RowBytes bytes =
                           row_bytes(e, t.first_row + t.begin, t.first_row + t.end);
                       if (!is_equal(e, *t.p, t.first_row, t.begin, t.end)) {
                         t.original->has_changed.store(true);
                       }
                       progress.add(bytes.weight_bytes);
                     });
    progress.finish();
  }

 private:
  std::vector<uint8_t> read(const StoredTensor& stored, int64_t begin, int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    if (n > 0) sources_.get(stored.file->path()).read(begin, n, bytes.data());
    return bytes;
  }

  // Whether the weights' rows [begin, end) are the original's, as far as it tells them apart.
  bool is_equal(const EncodedTensor& e, const Parameter& p, int64_t first_row, int64_t begin,
                int64_t end) {
    const RowBytes bytes = row_bytes(e, first_row + begin, first_row + end);
    const std::vector<uint8_t> weight = read(e.weight, bytes.weight_begin, bytes.weight_bytes);
    const int64_t n = (end - begin) * parameter_cols(p);
    if (p.kind == ParameterKind::kTable) {
      std::vector<int32_t> a(static_cast<size_t>(p.numel())), b(a.size());
      decode_expert_rows(e, num_experts_, 0, e.num_rows(), weight.data(), a.data());
      weights_.read_table(p, b.data());
      return a == b;
    }
    std::vector<uint8_t> scale;
    if (bytes.scale_bytes > 0) scale = read(e.scale, bytes.scale_begin, bytes.scale_bytes);
    std::vector<uint8_t> decoded(static_cast<size_t>(n * dtype_size(e.dtype)));
    decode_row_bytes(ctx_, e, first_row + begin, first_row + end, weight.data(), scale.data(),
                     decoded.data());
    std::vector<float> values(static_cast<size_t>(n));
    weights_.read_rows(p, begin, end, values.data());
    for (int64_t i = 0; i < n; ++i) {
      if (!is_same(e.dtype, decoded.data() + i * dtype_size(e.dtype),
                   values[static_cast<size_t>(i)])) {
        return false;
      }
    }
    return true;
  }

  static bool is_same(DType dtype, const uint8_t* stored, float value) {
    if (dtype == DType::kBF16) {
      uint16_t bits;
      std::memcpy(&bits, stored, 2);
      return f32_to_bf16(value) == bits;
    }
    float wide = 0;
    if (dtype == DType::kF32) {
      std::memcpy(&wide, stored, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, stored, 2);
      wide = f16_to_f32(bits);
    }
    // Exactly, or as torch_dist has it: rounded to BF16.
    return std::memcmp(&wide, &value, 4) == 0 || round_to_bf16(wide) == value;
  }

  const ExecContext& ctx_;
  const ExportSource& weights_;
  int64_t num_experts_;
  SourceFiles sources_;
};

ExportTensor copy_of(const StoredTensor& stored) {
  return {{stored.name(), *stored.entry->type->dtype, stored.shape()}, std::nullopt, {}, &stored};
}

ExportTensor changed(const Original& original, const NameDialect dialect, int64_t num_layers,
                     const ExportOptions& options) {
  const EncodedTensor& e = *original.tensor;
  const std::string name = e.weight.name();
  if (original.pieces.size() > 1 || e.shape.size() > 2) {  // experts of a layer in one tensor
    ExportTensor t{{name, DType::kBF16, e.shape}, std::nullopt, {}, nullptr};
    for (const auto& [row, p] : original.pieces) t.pieces.push_back(p);
    return t;
  }
  const Parameter& p = *original.pieces.begin()->second;
  const bool was_quantised = e.encoding != Encoding::kPlain;
  const bool as_fp8 =
      options.format == ExportFormat::kFp8 && (was_quantised || is_exported_as_fp8(p.name));
  const std::string scale =
      was_quantised ? e.scale.name() : stored_scale_name(p.name, dialect, num_layers);
  ExportTensor t = make_export_tensor(name, scale, p, as_fp8, options);
  if (p.kind == ParameterKind::kTable) t.spec.dtype = e.dtype;
  return t;
}

}  // namespace

ExportResult export_hf_over(const ExecContext& ctx, const ExportSource& weights,
                            const std::string& directory, const ExportOptions& options) {
  ExportDirectory output(options.output);
  const ModelTensors original(directory, /*with_mtp=*/true, ScaleCheck::kFp4WhenDecoded);
  Originals originals = match(original, weights.model());
  Comparison(ctx, weights, original.config().n_routed_experts).run(originals, options.piece_bytes);

  std::map<const TensorEntry*, bool> scale_is_stale;  // of what is written anew
  int64_t num_changed = 0, num_requantised = 0;
  for (const auto& [entry, o] : originals) {
    if (!o->has_changed.load()) continue;
    ++num_changed;
    if (o->tensor->encoding != Encoding::kPlain) {
      ++num_requantised;
      scale_is_stale[o->tensor->scale.entry] = true;
    }
  }
  std::vector<ExportFile> files;
  std::map<std::string, std::string> weight_map;
  for (const auto& file : original.shards().files()) {
    ExportFile out{base_name(file->path()), {}};
    for (const TensorEntry& entry : file->tensors()) {
      const StoredTensor* stored = original.shards().find(entry.name);
      if (stored == nullptr || stored->entry != &entry || scale_is_stale.contains(&entry)) continue;
      const auto it = originals.find(&entry);
      const bool is_new = it != originals.end() && it->second->has_changed.load();
      FATHOM_CHECK(is_new || entry.type->dtype.has_value(), stored->describe(),
                   ": this type cannot be copied");
      out.tensors.push_back(is_new ? changed(*it->second, original.dialect(),
                                             original.config().num_hidden_layers, options)
                                   : copy_of(*stored));
      weight_map[out.tensors.back().spec.name] = out.name;
      if (out.tensors.back().scale) weight_map[out.tensors.back().scale->name] = out.name;
    }
    if (!out.tensors.empty()) files.push_back(std::move(out));
  }
  // config.json tells what the original's tensors are; readers decide by each tensor's own type.
  write_file_atomic(join_path(options.output, "config.json"),
                    read_file(join_path(directory, "config.json")));
  copy_hub_files(directory, options.output);
  const ExportResult result = write_export_files(ctx, weights, files, options);
  if (original.shards().has_index()) {
    write_safetensors_index(options.output, weight_map, result.num_bytes);
  }
  output.finish();
  log_info("export-hf: ", result.num_copied, " tensors are the original's bytes, ", num_changed,
           " have changed, ", num_requantised, " of them were quantised there and are ",
           options.format == ExportFormat::kFp8 ? "FP8" : "BF16", " now");
  return result;
}

}  // namespace fathom
