#include "fathom/checkpoint/row_tasks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

// Whether the exponent field of any BF16 code is all ones.
bool has_not_finite(const uint16_t* bits, int64_t n) {
  uint16_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    found = static_cast<uint16_t>(found | ((bits[i] & 0x7F80u) == 0x7F80u ? 1u : 0u));
  }
  return found != 0;
}

bool has_not_finite(const float* values, int64_t n) {
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    found |= (bits & 0x7F800000u) == 0x7F800000u ? 1u : 0u;
  }
  return found != 0;
}

uint8_t* grow(std::vector<uint8_t>& buffer, int64_t num_bytes) {
  if (buffer.size() < static_cast<size_t>(num_bytes)) buffer.resize(static_cast<size_t>(num_bytes));
  return buffer.data();
}

template <typename T>
[[noreturn]] void refuse_not_finite(const EncodedTensor& t, int64_t row, const T* values,
                                    int64_t n) {
  int64_t i = 0;
  while (i < n && !has_not_finite(values + i, 1)) ++i;
  throw UserError(str_cat(t.weight.describe(), ": element ", row * t.num_cols() + i,
                          " is NaN or infinite",
                          "\n  fix: this checkpoint is damaged; fetch or convert it again"));
}

}  // namespace

int64_t row_item_size(const EncodedTensor& tensor, RowTarget target) {
  switch (target) {
    case RowTarget::kAsDecoded:
      return dtype_size(tensor.dtype);
    case RowTarget::kBF16:
      return 2;
    case RowTarget::kF32:
    case RowTarget::kExpertTable:
      return 4;
  }
  return 0;
}

int64_t row_task_bytes(const RowTask& task) {
  const RowBytes bytes = row_bytes(*task.tensor, task.row_begin, task.row_end);
  return bytes.weight_bytes + bytes.scale_bytes +
         (task.row_end - task.row_begin) * task.tensor->num_cols() *
             row_item_size(*task.tensor, task.target);
}

void RowTasks::add(const EncodedTensor& tensor, int64_t begin, int64_t end, RowTarget target,
                   const std::vector<RowOutput>& wanted, int64_t piece_bytes) {
  const int64_t row_bytes = std::max<int64_t>(1, tensor.num_cols() * row_item_size(tensor, target));
  const int64_t matrix_rows = tensor.shape.size() < 2 ? 1 : tensor.shape[tensor.shape.size() - 2];
  const int64_t fit = std::max<int64_t>(1, piece_bytes / row_bytes);
  const bool in_blocks = tensor.encoding == Encoding::kFp8Blocks;
  const int64_t step = in_blocks ? std::max<int64_t>(1, fit / kFp8BlockSize) * kFp8BlockSize : fit;
  for (int64_t row = begin; row < end;) {
    const int64_t matrix_begin = row / matrix_rows * matrix_rows;
    // FP8 pieces end on whole blocks of their matrix, so that no block is read twice.
    const int64_t aligned = matrix_begin + ((row - matrix_begin) / step + 1) * step;
    const int64_t stop =
        std::min({in_blocks ? aligned : row + step, end, matrix_begin + matrix_rows});
    RowTask task{&tensor, row, stop, target, static_cast<uint32_t>(outputs.size()), 0};
    for (RowOutput output : wanted) {
      const int64_t first = std::max(row, output.row_begin);
      output.item_row += first - output.row_begin;
      output.row_begin = first;
      output.row_end = std::min(stop, output.row_end);
      if (output.row_begin < output.row_end) outputs.push_back(output);
    }
    task.output_end = static_cast<uint32_t>(outputs.size());
    tasks.push_back(task);
    row = stop;
  }
}

struct RowConverter::Buffers {
  std::vector<uint8_t> weight, scale, decoded, converted, columns;
};

RowConverter::RowConverter(const ExecContext& ctx, const RowTasks& tasks, StreamWriter& writer,
                           bool check_finite, int num_threads)
    : ctx_(ctx), tasks_(tasks), writer_(writer), check_finite_(check_finite) {
  for (int i = 0; i < num_threads; ++i) buffers_.push_back(std::make_unique<Buffers>());
}

RowConverter::~RowConverter() = default;

void RowConverter::prefetch(int64_t index) {
  if (index >= static_cast<int64_t>(tasks_.tasks.size())) return;
  const RowTask& task = tasks_.tasks[static_cast<size_t>(index)];
  const RowBytes bytes = row_bytes(*task.tensor, task.row_begin, task.row_end);
  if (bytes.weight_bytes < (64 << 10)) return;
  sources_.get(task.tensor->weight.file->path()).prefetch(bytes.weight_begin, bytes.weight_bytes);
}

// The decoded elements in the target's type; in place where that is the one they have.
const uint8_t* RowConverter::convert(const RowTask& task, const uint8_t* decoded, Buffers& b) {
  const EncodedTensor& t = *task.tensor;
  const int64_t n = (task.row_end - task.row_begin) * t.num_cols();
  const auto check = [&](const auto* values) {
    if (check_finite_ && has_not_finite(values, n)) {
      refuse_not_finite(t, task.row_begin, values, n);
    }
  };
  const DType to = task.target == RowTarget::kBF16  ? DType::kBF16
                   : task.target == RowTarget::kF32 ? DType::kF32
                                                    : t.dtype;
  if (to == t.dtype) {
    if (to == DType::kBF16) check(reinterpret_cast<const uint16_t*>(decoded));
    if (to == DType::kF32) check(reinterpret_cast<const float*>(decoded));
    return decoded;
  }
  // Through fp32: exact widening, then at most one rounding.
  std::vector<float> wide(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    float& value = wide[static_cast<size_t>(i)];
    if (t.dtype == DType::kF32) {
      std::memcpy(&value, decoded + 4 * i, 4);
      continue;
    }
    uint16_t half;
    std::memcpy(&half, decoded + 2 * i, 2);
    value = t.dtype == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
  }
  check(wide.data());
  uint8_t* out = grow(b.converted, n * dtype_size(to));
  if (to == DType::kF32) {
    std::memcpy(out, wide.data(), static_cast<size_t>(n * 4));
    return out;
  }
  auto* bits = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < n; ++i) bits[i] = f32_to_bf16(wide[static_cast<size_t>(i)]);
  check(bits);  // a value beyond BF16's range has become infinite
  return out;
}

int64_t RowConverter::run(int64_t index, int thread) {
  const RowTask& task = tasks_.tasks[static_cast<size_t>(index)];
  Buffers& b = *buffers_[static_cast<size_t>(thread)];
  const EncodedTensor& t = *task.tensor;
  const RowBytes bytes = row_bytes(t, task.row_begin, task.row_end);
  grow(b.weight, bytes.weight_bytes);
  sources_.get(t.weight.file->path()).read(bytes.weight_begin, bytes.weight_bytes, b.weight.data());
  if (bytes.scale_bytes > 0) {
    grow(b.scale, bytes.scale_bytes);
    sources_.get(t.scale.file->path()).read(bytes.scale_begin, bytes.scale_bytes, b.scale.data());
  }
  const int64_t rows = task.row_end - task.row_begin, cols = t.num_cols(), n = rows * cols;
  const int64_t item = row_item_size(t, task.target);
  const uint8_t* result = b.weight.data();
  if (task.target == RowTarget::kExpertTable) {
    auto* ids = reinterpret_cast<int32_t*>(grow(b.converted, n * 4));
    decode_expert_rows(t, tasks_.num_experts, task.row_begin, task.row_end, b.weight.data(), ids);
    result = b.converted.data();
  } else {
    if (t.encoding != Encoding::kPlain) {
      grow(b.decoded, n * 2);
      decode_row_bytes(ctx_, t, task.row_begin, task.row_end, b.weight.data(), b.scale.data(),
                       b.decoded.data());
      result = b.decoded.data();
    }
    result = convert(task, result, b);
  }
  int64_t written = 0;
  for (uint32_t i = task.output_begin; i < task.output_end; ++i) {
    const RowOutput& output = tasks_.outputs[i];
    const int64_t width = (output.col_end - output.col_begin) * item;
    const int64_t num_rows = output.row_end - output.row_begin;
    const uint8_t* data = result + (output.row_begin - task.row_begin) * cols * item;
    if (width != cols * item) {
      uint8_t* to = grow(b.columns, num_rows * width);
      for (int64_t r = 0; r < num_rows; ++r) {
        std::memcpy(to + r * width, data + (r * cols + output.col_begin) * item,
                    static_cast<size_t>(width));
      }
      data = to;
    }
    writer_.put(output.item, output.item_row * width, data, num_rows * width);
    written += num_rows * width;
  }
  num_bytes_put_.fetch_add(written);
  return bytes.weight_bytes + bytes.scale_bytes + written;
}

}  // namespace fathom
