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

void check_scale_shape(const StoredTensor& weight, const StoredTensor& scale,
                       const std::vector<int64_t>& expected, const char* format) {
  FATHOM_CHECK(scale.shape() == expected, weight.describe(), ": the scale of ", format,
               " must have shape ", shape_to_string(expected), ", got ", scale.describe());
}

[[noreturn]] void refuse_scale(const StoredTensor& scale, int64_t i, float value) {
  throw UserError(str_cat(
      scale.describe(), ": scale ", i, " is ", std::isnan(value) ? "NaN" : "infinite",
      "\n  fix: fetch or convert this checkpoint again; the weights that it ", "scales are lost"));
}

void check_scale_values(const StoredTensor& scale) {
  int64_t count = 1;
  for (const int64_t d : scale.shape()) count *= d;
  for (int64_t i = 0; i < count; ++i) {
    const float value = scale_at(scale, i);
    if (!std::isfinite(value)) refuse_scale(scale, i, value);
  }
}

// Rows of one matrix as FP8 needs them: in whole blocks of rows.
struct BlockRows {
  int64_t matrix, begin, end;       // rows inside the matrix
  int64_t wide_begin, wide_end;     // whole blocks around them
  int64_t first_scale, num_scales;  // in the scale tensor
};

BlockRows block_rows(const EncodedTensor& t, int64_t begin, int64_t end) {
  const int64_t cols = t.num_cols(), rows = t.shape[t.shape.size() - 2];
  BlockRows b{};
  b.matrix = begin / rows;
  b.begin = begin - b.matrix * rows;
  b.end = end - b.matrix * rows;
  FATHOM_ASSERT(b.end <= rows, "rows of several matrices");
  const int64_t first_block = b.begin / kBlock, last_block = ceil_div(b.end, kBlock);
  b.wide_begin = first_block * kBlock;
  b.wide_end = std::min(rows, last_block * kBlock);
  const int64_t scale_cols = ceil_div(cols, kBlock);
  b.first_scale = (b.matrix * ceil_div(rows, kBlock) + first_block) * scale_cols;
  b.num_scales = (last_block - first_block) * scale_cols;
  return b;
}

// A range that cuts a block of rows goes through memory of its own.
void decode_fp8(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                const uint8_t* codes, const uint8_t* scale, uint16_t* out) {
  const int64_t cols = t.num_cols();
  const BlockRows b = block_rows(t, begin, end);
  const bool whole = b.wide_begin == b.begin && b.wide_end == b.end;
  const int64_t wide_rows = b.wide_end - b.wide_begin;
  std::vector<uint16_t> wide(whole ? 0 : static_cast<size_t>(wide_rows * cols));
  uint16_t* to = whole ? out : wide.data();
  if (is_f32(t.scale)) {
    std::vector<float> scales(static_cast<size_t>(b.num_scales));
    std::memcpy(scales.data(), scale, scales.size() * 4);
    for (size_t i = 0; i < scales.size(); ++i) {
      if (!std::isfinite(scales[i])) {
        refuse_scale(t.scale, b.first_scale + static_cast<int64_t>(i), scales[i]);
      }
    }
    dequantise_fp8(ctx, wide_rows, cols, codes, scales.data(), to);
  } else {
    for (int64_t i = 0; i < b.num_scales; ++i) {
      if (scale[i] == 255) refuse_scale(t.scale, b.first_scale + i, e8m0_to_f32(255));
    }
    dequantise_fp8(ctx, wide_rows, cols, codes, scale, to);
  }
  if (whole) return;
  std::memcpy(out, to + (b.begin - b.wide_begin) * cols,
              static_cast<size_t>((end - begin) * cols * 2));
}

}  // namespace

int64_t EncodedTensor::num_rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

RowBytes row_bytes(const EncodedTensor& t, int64_t begin, int64_t end) {
  RowBytes bytes;
  if (begin >= end) return bytes;
  const int64_t cols = t.num_cols();
  switch (t.encoding) {
    case Encoding::kPlain: {
      const int64_t row = cols * dtype_size(t.dtype);
      bytes.weight_begin = begin * row;
      bytes.weight_bytes = (end - begin) * row;
      break;
    }
    case Encoding::kFp4Groups:
      bytes.weight_begin = begin * cols / 2;
      bytes.weight_bytes = (end - begin) * cols / 2;
      bytes.scale_begin = begin * (cols / kGroup);
      bytes.scale_bytes = (end - begin) * (cols / kGroup);
      break;
    case Encoding::kFp8Blocks: {
      const BlockRows b = block_rows(t, begin, end);
      const int64_t scale_item = is_f32(t.scale) ? 4 : 1;
      bytes.weight_begin = (b.matrix * t.shape[t.shape.size() - 2] + b.wide_begin) * cols;
      bytes.weight_bytes = (b.wide_end - b.wide_begin) * cols;
      bytes.scale_begin = b.first_scale * scale_item;
      bytes.scale_bytes = b.num_scales * scale_item;
      break;
    }
  }
  bytes.weight_begin += t.weight.entry->begin;
  if (bytes.scale_bytes > 0) bytes.scale_begin += t.scale.entry->begin;
  return bytes;
}

void decode_row_bytes(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                      const uint8_t* weight, const uint8_t* scale, void* out) {
  if (begin >= end) return;
  const int64_t cols = t.num_cols();
  switch (t.encoding) {
    case Encoding::kPlain:
      std::memcpy(out, weight, static_cast<size_t>((end - begin) * cols * dtype_size(t.dtype)));
      return;
    case Encoding::kFp8Blocks:
      decode_fp8(ctx, t, begin, end, weight, scale, static_cast<uint16_t*>(out));
      return;
    case Encoding::kFp4Groups: {
      const int64_t count = (end - begin) * (cols / kGroup);
      if (const void* nan = std::memchr(scale, 255, static_cast<size_t>(count))) {
        const int64_t at = static_cast<const uint8_t*>(nan) - scale;
        refuse_scale(t.scale, begin * (cols / kGroup) + at, e8m0_to_f32(255));
      }
      dequantise_fp4(ctx, end - begin, cols, weight, scale, static_cast<uint16_t*>(out));
      return;
    }
  }
}

EncodedTensor identify_encoding(const StoredTensor& weight, const StoredTensor* scale,
                                ScaleCheck check) {
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
    check_scale_shape(weight, *scale, scale_shape, "FP8 with 128 x 128 blocks");
    check_scale_values(*scale);
  } else {
    if (!is_e8m0(*scale)) refuse("one-byte integers are packed FP4, whose scale must be E8M0");
    t.encoding = Encoding::kFp4Groups;
    t.shape[cols] *= 2;
    if (t.shape[cols] % kGroup != 0) refuse("packed FP4 rows must be whole groups of 32 values");
    scale_shape[cols] = t.shape[cols] / kGroup;
    check_scale_shape(weight, *scale, scale_shape, "packed FP4 with groups of 32");
    if (check == ScaleCheck::kNow) check_scale_values(*scale);
  }
  return t;
}

void decode_rows(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                 void* out) {
  const int64_t rows = t.shape.size() < 2 ? t.num_rows() : t.shape[t.shape.size() - 2];
  const int64_t row_size = t.num_cols() * dtype_size(t.dtype);
  while (begin < end) {
    const int64_t stop = std::min(end, (begin / rows + 1) * rows);  // of this matrix
    const RowBytes bytes = row_bytes(t, begin, stop);
    const uint8_t* weight = t.weight.data() + (bytes.weight_begin - t.weight.entry->begin);
    const uint8_t* scale = bytes.scale_bytes == 0
                               ? nullptr
                               : t.scale.data() + (bytes.scale_begin - t.scale.entry->begin);
    decode_row_bytes(ctx, t, begin, stop, weight, scale, out);
    out = static_cast<uint8_t*>(out) + (stop - begin) * row_size;
    begin = stop;
  }
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

void decode_expert_rows(const EncodedTensor& t, int64_t num_experts, int64_t begin, int64_t end,
                        const uint8_t* bytes, int32_t* out) {
  FATHOM_CHECK(t.dtype == DType::kI64 || t.dtype == DType::kI32, t.weight.describe(),
               ": a table of expert ids must be I64 or I32");
  const int64_t count = (end - begin) * t.num_cols();
  for (int64_t i = 0; i < count; ++i) {
    int64_t id = 0;
    if (t.dtype == DType::kI64) {
      std::memcpy(&id, bytes + 8 * i, 8);
    } else {
      int32_t narrow;
      std::memcpy(&narrow, bytes + 4 * i, 4);
      id = narrow;
    }
    FATHOM_CHECK(id >= 0 && id < num_experts, t.weight.describe(), ": token ",
                 begin + i / t.num_cols(), " is sent to expert ", id, ", there are ", num_experts);
    out[i] = static_cast<int32_t>(id);
  }
}

void decode_expert_table(const EncodedTensor& t, int64_t num_experts, int32_t* out) {
  decode_expert_rows(t, num_experts, 0, t.num_rows(), t.weight.data(), out);
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
