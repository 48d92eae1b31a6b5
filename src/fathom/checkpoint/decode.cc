#include "fathom/checkpoint/decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/base/json.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

constexpr int64_t kBlock = kFp8BlockSize;
constexpr int64_t kGroup = kFp4GroupSize;
constexpr int64_t kGrain = 16;  // rows a thread widens at once

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_e8m0(const StoredTensor& scale) {
  return scale.entry->type->dtype == DType::kF8E8M0 || scale.entry->type->dtype == DType::kU8;
}

bool is_f32(const StoredTensor& scale) { return scale.entry->type->dtype == DType::kF32; }

// Files give no alignment, so wide values are copied out byte by byte.
float scale_at(const StoredTensor& scale, int64_t i) {
  if (is_e8m0(scale)) return e8m0_to_f32(scale.data()[i]);
  float value;
  std::memcpy(&value, scale.data() + 4 * i, 4);
  return value;
}

void check_scale(const StoredTensor& weight, const StoredTensor& scale,
                 const std::vector<int64_t>& expected, const char* format) {
  FATHOM_CHECK(scale.shape() == expected, weight.describe(), ": the scale of ", format,
               " must have shape ", shape_to_string(expected), ", got ", scale.describe());
  int64_t count = 1;
  for (const int64_t d : expected) count *= d;
  for (int64_t i = 0; i < count; ++i) {
    const float value = scale_at(scale, i);
    FATHOM_CHECK(std::isfinite(value), scale.describe(), ": scale ", i, " is ",
                 std::isnan(value) ? "NaN" : "infinite",
                 "\n  fix: fetch or convert this checkpoint again; the weights that it scales are ",
                 "lost");
  }
}

// Rows [begin, end) of one matrix of the tensor. FP8 is decoded in whole blocks of rows, so a range
// that cuts a block goes through memory of its own.
void decode_matrix_rows(const ExecContext& ctx, const EncodedTensor& t, int64_t matrix,
                        int64_t begin, int64_t end, uint16_t* out) {
  const int64_t cols = t.num_cols(), rows = t.shape[t.shape.size() - 2];
  if (t.encoding == Encoding::kFp4Groups) {
    const int64_t first = matrix * rows + begin;
    dequantise_fp4(ctx, end - begin, cols, t.weight.data() + first * cols / 2,
                   t.scale.data() + first * (cols / kGroup), out);
    return;
  }
  const int64_t block_begin = begin / kBlock, block_end = ceil_div(end, kBlock);
  const int64_t wide_begin = block_begin * kBlock, wide_end = std::min(rows, block_end * kBlock);
  const int64_t scale_cols = ceil_div(cols, kBlock);
  const int64_t first_scale = (matrix * ceil_div(rows, kBlock) + block_begin) * scale_cols;
  const int64_t num_scales = (block_end - block_begin) * scale_cols;
  const uint8_t* codes = t.weight.data() + (matrix * rows + wide_begin) * cols;
  const bool whole = wide_begin == begin && wide_end == end;
  std::vector<uint16_t> wide(whole ? 0 : static_cast<size_t>((wide_end - wide_begin) * cols));
  uint16_t* to = whole ? out : wide.data();
  if (is_f32(t.scale)) {
    std::vector<float> scales(static_cast<size_t>(num_scales));
    std::memcpy(scales.data(), t.scale.data() + first_scale * 4, scales.size() * 4);
    dequantise_fp8(ctx, wide_end - wide_begin, cols, codes, scales.data(), to);
  } else {
    dequantise_fp8(ctx, wide_end - wide_begin, cols, codes, t.scale.data() + first_scale, to);
  }
  if (whole) return;
  std::memcpy(out, to + (begin - wide_begin) * cols, static_cast<size_t>((end - begin) * cols * 2));
}

void decode_quantised(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                      uint16_t* out) {
  const int64_t cols = t.num_cols(), rows = t.shape[t.shape.size() - 2];
  while (begin < end) {
    const int64_t matrix = begin / rows;
    const int64_t stop = std::min(end, (matrix + 1) * rows);
    decode_matrix_rows(ctx, t, matrix, begin - matrix * rows, stop - matrix * rows, out);
    out += (stop - begin) * cols;
    begin = stop;
  }
}

}  // namespace

int64_t EncodedTensor::num_rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

EncodedTensor identify_encoding(const StoredTensor& weight, const StoredTensor* scale) {
  EncodedTensor t;
  t.weight = weight;
  t.shape = weight.shape();
  const std::optional<DType> dtype = weight.entry->type->dtype;
  const auto refuse = [&](const char* why) {
    throw UserError(str_cat(weight.describe(), ": ", why,
                            scale == nullptr ? "; it has no scale" : "; its scale is ",
                            scale == nullptr ? "" : scale->describe(),
                            "\n  fix: give a checkpoint in BF16, F32, FP8 (128 x 128 blocks) or ",
                            "FP4 (groups of 32)"));
  };
  if (!dtype.has_value()) refuse("this type cannot be decoded");
  switch (*dtype) {
    case DType::kBF16:
    case DType::kF16:
    case DType::kF32:
    case DType::kI32:
    case DType::kI64:
      if (scale != nullptr) refuse("an unquantised tensor must not have a scale");
      t.dtype = *dtype;
      return t;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8:
      break;
    default:
      refuse("this type cannot be decoded");
  }
  FATHOM_CHECK(scale != nullptr, weight.describe(), ": the scale of this quantised tensor is ",
               "missing (looked for names ending in .scale, .weight_scale_inv and _scale_inv)",
               "\n  fix: fetch or convert this checkpoint again");
  t.scale = *scale;
  if (t.shape.size() != 2 && t.shape.size() != 3) refuse("a quantised tensor must be a matrix");
  const size_t rows = t.shape.size() - 2, cols = t.shape.size() - 1;
  std::vector<int64_t> scale_shape = t.shape;
  if (*dtype == DType::kF8E4M3) {
    if (!is_e8m0(*scale) && !is_f32(*scale)) refuse("the scale of FP8 must be E8M0 or F32");
    t.encoding = Encoding::kFp8Blocks;
    scale_shape[rows] = ceil_div(t.shape[rows], kBlock);
    scale_shape[cols] = ceil_div(t.shape[cols], kBlock);
    check_scale(weight, *scale, scale_shape, "FP8 with 128 x 128 blocks");
  } else {
    if (!is_e8m0(*scale)) refuse("one-byte integers are packed FP4, whose scale must be E8M0");
    t.encoding = Encoding::kFp4Groups;
    t.shape[cols] *= 2;
    if (t.shape[cols] % kGroup != 0) refuse("packed FP4 rows must be whole groups of 32 values");
    scale_shape[cols] = t.shape[cols] / kGroup;
    check_scale(weight, *scale, scale_shape, "packed FP4 with groups of 32");
  }
  return t;
}

void decode_rows(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                 void* out) {
  if (t.encoding != Encoding::kPlain) {
    decode_quantised(ctx, t, begin, end, static_cast<uint16_t*>(out));
    return;
  }
  const int64_t row_bytes = t.num_cols() * dtype_size(t.dtype);
  if (begin == end) return;
  std::memcpy(out, t.weight.data() + begin * row_bytes,
              static_cast<size_t>((end - begin) * row_bytes));
}

void decode_rows_f32(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                     float* out) {
  FATHOM_ASSERT(t.dtype == DType::kBF16 || t.dtype == DType::kF16 || t.dtype == DType::kF32,
                t.weight.describe());
  if (t.dtype == DType::kF32) {
    decode_rows(ctx, t, begin, end, out);
    return;
  }
  const int64_t cols = t.num_cols();
  std::vector<uint16_t> narrow(static_cast<size_t>((end - begin) * cols));
  decode_rows(ctx, t, begin, end, narrow.data());
  ctx.threads->parallel_for(end - begin, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first * cols; i < last * cols; ++i) {
      const uint16_t bits = narrow[static_cast<size_t>(i)];
      out[i] = t.dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  });
}

void decode_expert_table(const EncodedTensor& t, int64_t num_experts, int32_t* out) {
  FATHOM_CHECK(t.dtype == DType::kI64 || t.dtype == DType::kI32, t.weight.describe(),
               ": a table of expert ids must be I64 or I32");
  const int64_t count = t.num_rows() * t.num_cols();
  for (int64_t i = 0; i < count; ++i) {
    int64_t id = 0;
    if (t.dtype == DType::kI64) {
      std::memcpy(&id, t.weight.data() + 8 * i, 8);
    } else {
      int32_t narrow;
      std::memcpy(&narrow, t.weight.data() + 4 * i, 4);
      id = narrow;
    }
    FATHOM_CHECK(id >= 0 && id < num_experts, t.weight.describe(), ": token ", i / t.num_cols(),
                 " is sent to expert ", id, ", there are ", num_experts);
    out[i] = static_cast<int32_t>(id);
  }
}

void check_quantization_config(const Json& config, const std::string& origin) {
  const auto it = config.find("quantization_config");
  if (it == config.end() || it->is_null()) return;
  const auto refuse = [&](const std::string& field) {
    throw UserError(str_cat(origin, ": unknown quantisation: quantization_config",
                            field.empty() ? "" : ".", field, " is ",
                            field.empty() ? it->dump() : (*it)[field].dump(),
                            "\n  fix: give a checkpoint in BF16, F32, FP8 (128 x 128 blocks) or ",
                            "FP4 (groups of 32)"));
  };
  if (!it->is_object()) refuse("");
  if (it->contains("quant_method") && (*it)["quant_method"] != "fp8") refuse("quant_method");
  if (it->contains("fmt") && (*it)["fmt"] != "e4m3") refuse("fmt");
  if (it->contains("weight_block_size") && !(*it)["weight_block_size"].is_null() &&
      (*it)["weight_block_size"] != Json::array({128, 128})) {
    refuse("weight_block_size");
  }
}

}  // namespace fathom
