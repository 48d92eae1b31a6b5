#include "fathom/checkpoint/export_files.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "fathom/base/error.h"
#include "fathom/checkpoint/stream_files.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

int64_t num_blocks(int64_t n) { return (n + kFp8BlockSize - 1) / kFp8BlockSize; }

// Rows of a parameter, or bytes of a stored tensor, on their way to a file.
struct ExportTask {
  const ExportTensor* tensor = nullptr;
  const Parameter* parameter = nullptr;  // null: a copy
  size_t item = 0, scale_item = 0;
  int64_t begin = 0, end = 0;  // rows, or bytes
  int64_t item_row = 0;        // of the parameter's first row
};

class ExportStream {
 public:
  ExportStream(const ExecContext& ctx, const ExportSource& weights, const ExportOptions& options)
      : ctx_(ctx), weights_(weights), options_(options) {}

  ExportResult write(const std::vector<ExportFile>& files) {
    for (const ExportFile& file : files) plan_file(file);
    int64_t to_allocate = 0;
    for (const StreamFile& file : files_) to_allocate += file.num_bytes;
    check_free_space("export-hf", options_.output, to_allocate, "--output");
    const int threads = num_stream_threads(ctx_.threads->num_threads());
    StreamWriter writer(files_, items_, std::vector<bool>(files_.size(), true));
    writer_ = &writer;
    ByteProgress progress("export-hf", result_.num_bytes);
    try {
      run_stream_tasks(threads, static_cast<int64_t>(tasks_.size()), [&](int64_t i, int) {
        const int64_t before = writer.num_bytes();
        run(tasks_[static_cast<size_t>(i)]);
        progress.add(std::max<int64_t>(0, writer.num_bytes() - before));
      });
    } catch (...) {
      progress.finish();
      writer.discard();
      throw;
    }
    progress.finish();
    result_.num_shards = static_cast<int64_t>(files.size());
    return result_;
  }

 private:
  void plan_file(const ExportFile& file) {
    std::vector<TensorSpec> specs;
    for (const ExportTensor& t : file.tensors) {
      specs.push_back(t.spec);
      if (t.scale) specs.push_back(*t.scale);
    }
    SafetensorsLayout layout = lay_out_safetensors(std::move(specs));
    std::map<std::string, size_t> item_of;
    for (size_t i = 0; i < layout.order.size(); ++i) {
      StreamItem item;
      item.file = files_.size();
      item.offset = layout.offsets[i];
      item.num_bytes = layout.order[i].num_bytes();
      item_of[layout.order[i].name] = items_.size();
      items_.push_back(std::move(item));
      result_.num_bytes += layout.order[i].num_bytes();
      ++result_.num_tensors;
    }
    files_.push_back(
        {join_path(options_.output, file.name), layout.num_bytes, std::move(layout.start)});
    std::map<std::string, const ExportTensor*> by_name;
    for (const ExportTensor& t : file.tensors) by_name[t.spec.name] = &t;
    for (const TensorSpec& spec : layout.order) {  // the order of the file's bytes
      const auto it = by_name.find(spec.name);
      if (it != by_name.end()) plan_tensor(*it->second, item_of);
    }
  }

  void plan_tensor(const ExportTensor& t, const std::map<std::string, size_t>& item_of) {
    ExportTask task;
    task.tensor = &t;
    task.item = item_of.at(t.spec.name);
    if (t.scale) task.scale_item = item_of.at(t.scale->name);
    if (t.copy != nullptr) {
      ++result_.num_copied;
      const int64_t size = t.copy->entry->num_bytes();
      for (int64_t at = 0; at < size; at += options_.piece_bytes) {
        task.begin = at;
        task.end = std::min(size, at + options_.piece_bytes);
        tasks_.push_back(task);
      }
      return;
    }
    for (const Parameter* p : t.pieces) {
      task.parameter = p;
      const int64_t rows = parameter_rows(*p);
      const int64_t fit = options_.piece_bytes / std::max<int64_t>(1, 4 * parameter_cols(*p));
      const int64_t step = p->kind == ParameterKind::kTable
                               ? rows
                               : std::max<int64_t>(1, fit / kFp8BlockSize) * kFp8BlockSize;
      for (int64_t row = 0; row < rows; row += step) {
        task.begin = row;
        task.end = std::min(rows, row + step);
        tasks_.push_back(task);
      }
      task.item_row += rows;
    }
  }

  void run(const ExportTask& task) {
    if (task.parameter == nullptr) return copy(task);
    const Parameter& p = *task.parameter;
    if (p.kind == ParameterKind::kTable) return write_table(task);
    const int64_t rows = task.end - task.begin, cols = parameter_cols(p);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    weights_.read_rows(p, task.begin, task.end, values.data());
    check(task, values, task.tensor->spec.dtype == DType::kBF16);
    const int64_t first = task.item_row + task.begin;
    if (task.tensor->scale) {
      write_fp8(task, values, first);
    } else if (task.tensor->spec.dtype == DType::kBF16) {
      std::vector<uint16_t> bits(values.size());
      for (size_t i = 0; i < values.size(); ++i) bits[i] = f32_to_bf16(values[i]);
      writer_->put(task.item, first * cols * 2, bits.data(), rows * cols * 2);
    } else {
      writer_->put(task.item, first * cols * 4, values.data(), rows * cols * 4);
    }
  }

  static void check(const ExportTask& task, const std::vector<float>& values, bool narrow) {
    for (size_t i = 0; i < values.size(); ++i) {
      const float stored = narrow ? round_to_bf16(values[i]) : values[i];
      FATHOM_CHECK(std::isfinite(stored), task.parameter->name, ": element ",
                   task.begin * parameter_cols(*task.parameter) + static_cast<int64_t>(i), " is ",
                   values[i],
                   ", which cannot be exported\n  fix: this training run has gone wrong ",
                   "before its checkpoint; export an earlier one");
    }
  }

  void write_fp8(const ExportTask& task, const std::vector<float>& values, int64_t first) {
    const int64_t rows = task.end - task.begin, cols = parameter_cols(*task.parameter);
    std::vector<uint8_t> codes(values.size());
    const int64_t count = num_blocks(rows) * num_blocks(cols);
    const int64_t scale_row = first / kFp8BlockSize;  // pieces begin on whole blocks
    with_context(task.parameter->name, [&] {
      if (task.tensor->scale->dtype == DType::kF32) {
        std::vector<float> scales(static_cast<size_t>(count));
        quantise_fp8(ctx_, rows, cols, values.data(), codes.data(), scales.data());
        writer_->put(task.scale_item, scale_row * num_blocks(cols) * 4, scales.data(), count * 4);
      } else {
        std::vector<uint8_t> scales(static_cast<size_t>(count));
        quantise_fp8(ctx_, rows, cols, values.data(), codes.data(), scales.data());
        writer_->put(task.scale_item, scale_row * num_blocks(cols), scales.data(), count);
      }
    });
    writer_->put(task.item, first * cols, codes.data(), rows * cols);
  }

  void write_table(const ExportTask& task) {
    const Parameter& p = *task.parameter;
    std::vector<int32_t> ids(static_cast<size_t>(p.numel()));
    weights_.read_table(p, ids.data());
    if (task.tensor->spec.dtype == DType::kI32) {
      writer_->put(task.item, 0, ids.data(), p.numel() * 4);
      return;
    }
    const std::vector<int64_t> wide(ids.begin(), ids.end());
    writer_->put(task.item, 0, wide.data(), p.numel() * 8);
  }

  void copy(const ExportTask& task) {
    const StoredTensor& from = *task.tensor->copy;
    std::vector<uint8_t> bytes(static_cast<size_t>(task.end - task.begin));
    sources_.get(from.file->path())
        .read(from.entry->begin + task.begin, task.end - task.begin, bytes.data());
    writer_->put(task.item, task.begin, bytes.data(), task.end - task.begin);
  }

  const ExecContext& ctx_;
  const ExportSource& weights_;
  const ExportOptions& options_;
  std::vector<StreamFile> files_;
  std::vector<StreamItem> items_;
  std::vector<ExportTask> tasks_;
  SourceFiles sources_;
  StreamWriter* writer_ = nullptr;
  ExportResult result_;
};

}  // namespace

ExportTensor make_export_tensor(const std::string& name, const std::string& scale_name,
                                const Parameter& p, bool as_fp8, const ExportOptions& options) {
  if (!as_fp8) {
    const DType dtype = p.kind == ParameterKind::kTable ? DType::kI64 : p.export_dtype;
    return {{name, dtype, p.shape}, std::nullopt, {&p}, nullptr};
  }
  const DType scales = options.scales == ExportScales::kF32 ? DType::kF32 : DType::kF8E8M0;
  return {{name, DType::kF8E4M3, p.shape},
          TensorSpec{scale_name, scales, {num_blocks(p.shape[0]), num_blocks(p.shape[1])}},
          {&p},
          nullptr};
}

ExportResult write_export_files(const ExecContext& ctx, const ExportSource& weights,
                                const std::vector<ExportFile>& files,
                                const ExportOptions& options) {
  return ExportStream(ctx, weights, options).write(files);
}

}  // namespace fathom
