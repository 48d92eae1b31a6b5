#include "fathom/checkpoint/decode.h"

#include <cmath>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/number_formats.h"

namespace fathom {
namespace {

constexpr int64_t kBlock = 128;  // FP8: one scale for 128 x 128 codes
constexpr int64_t kGroup = 32;   // FP4: one scale for 32 codes of a row
constexpr int64_t kGrain = 16;   // rows a thread takes at once

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

// The scale of row `r` (counted over all matrices) at column block `c`.
struct ScaleRow {
  const StoredTensor* scale;
  int64_t first;
  float operator()(int64_t c) const { return scale_at(*scale, first + c); }
};

void decode_fp8_row(const EncodedTensor& t, int64_t row, uint16_t* out) {
  const int64_t cols = t.num_cols(), rows = t.shape[t.shape.size() - 2];
  const int64_t matrix = row / rows, block_row = row % rows / kBlock;
  const int64_t block_cols = ceil_div(cols, kBlock);
  const ScaleRow scale{&t.scale, (matrix * ceil_div(rows, kBlock) + block_row) * block_cols};
  const uint8_t* codes = t.weight.data() + row * cols;
  for (int64_t block = 0; block < block_cols; ++block) {
    const float s = scale(block);
    const int64_t end = std::min(cols, (block + 1) * kBlock);
    for (int64_t c = block * kBlock; c < end; ++c) out[c] = f32_to_bf16(e4m3_to_f32(codes[c]) * s);
  }
}

void decode_fp4_row(const EncodedTensor& t, int64_t row, uint16_t* out) {
  const int64_t cols = t.num_cols();
  const ScaleRow scale{&t.scale, row * (cols / kGroup)};
  const uint8_t* codes = t.weight.data() + row * cols / 2;
  for (int64_t group = 0; group < cols / kGroup; ++group) {
    const float s = scale(group);
    for (int64_t c = group * kGroup; c < (group + 1) * kGroup; c += 2) {
      const uint8_t pair = codes[c / 2];  // the low half is the even column
      out[c] = f32_to_bf16(e2m1_to_f32(pair & 0x0F) * s);
      out[c + 1] = f32_to_bf16(e2m1_to_f32(pair >> 4) * s);
    }
  }
}

void decode_quantised_row(const EncodedTensor& t, int64_t row, uint16_t* out) {
  if (t.encoding == Encoding::kFp8Blocks) {
    decode_fp8_row(t, row, out);
  } else {
    decode_fp4_row(t, row, out);
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
                 uint8_t* out) {
  const int64_t cols = t.num_cols();
  if (t.encoding == Encoding::kPlain) {
    const int64_t row_bytes = cols * dtype_size(t.dtype);
    std::memcpy(out, t.weight.data() + begin * row_bytes,
                static_cast<size_t>((end - begin) * row_bytes));
    return;
  }
  ctx.threads->parallel_for(end - begin, kGrain, [&](int64_t first, int64_t last) {
    std::vector<uint16_t> row(static_cast<size_t>(cols));
    for (int64_t r = first; r < last; ++r) {
      decode_quantised_row(t, begin + r, row.data());
      std::memcpy(out + r * cols * 2, row.data(), static_cast<size_t>(cols * 2));
    }
  });
}

void decode_rows_f32(const ExecContext& ctx, const EncodedTensor& t, int64_t begin, int64_t end,
                     float* out) {
  const int64_t cols = t.num_cols();
  FATHOM_ASSERT(t.dtype == DType::kBF16 || t.dtype == DType::kF16 || t.dtype == DType::kF32,
                t.weight.describe());
  ctx.threads->parallel_for(end - begin, kGrain, [&](int64_t first, int64_t last) {
    std::vector<uint16_t> row(static_cast<size_t>(cols));
    for (int64_t r = first; r < last; ++r) {
      float* to = out + r * cols;
      const int64_t from = begin + r;
      if (t.dtype == DType::kF32) {
        std::memcpy(to, t.weight.data() + from * cols * 4, static_cast<size_t>(cols * 4));
        continue;
      }
      if (t.encoding == Encoding::kPlain) {
        std::memcpy(row.data(), t.weight.data() + from * cols * 2, static_cast<size_t>(cols * 2));
      } else {
        decode_quantised_row(t, from, row.data());
      }
      for (int64_t c = 0; c < cols; ++c) {
        const uint16_t bits = row[static_cast<size_t>(c)];
        to[c] = t.dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
      }
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
