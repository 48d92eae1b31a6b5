// Stored tensors to numbers. How a tensor is encoded is decided by its dtype and by its companion
// scale, never by its name or by the configuration.
//   F8_E4M3 [R, C] + scale [ceil(R/128), ceil(C/128)] (E8M0 or F32)   value = code * scale, to BF16
//   I8 or U8 [R, C/2] + scale [R, C/32] (E8M0)                        two FP4 codes a byte, to BF16
//   BF16, F16, F32, I64, I32 without a scale                          as stored
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/shards.h"

namespace fathom {

enum class Encoding { kPlain, kFp8Blocks, kFp4Groups };

struct EncodedTensor {
  StoredTensor weight, scale;  // scale.entry is null for kPlain
  Encoding encoding = Encoding::kPlain;
  DType dtype = DType::kBF16;  // once decoded
  std::vector<int64_t> shape;  // once decoded; a matrix, or [E, R, C] of equal matrices

  int64_t num_cols() const { return shape.empty() ? 1 : shape.back(); }
  int64_t num_rows() const;  // of all leading dimensions together
};

/// When the values of scales are looked at. Those of FP4 are a twentieth of a checkpoint's bytes,
/// too much to be read twice.
enum class ScaleCheck { kNow, kFp4WhenDecoded };

/// @param scale the companion, or null.
/// Errors: UserError that names the tensor, its shard and what was got: a quantised tensor without
/// scale, a scale of another shape or type, a NaN or infinite scale, a scale beside a tensor that
/// needs none, a type that no published checkpoint uses.
EncodedTensor identify_encoding(const StoredTensor& weight, const StoredTensor* scale,
                                ScaleCheck check = ScaleCheck::kNow);

/// The bytes in files that rows of a tensor are made of.
struct RowBytes {
  int64_t weight_begin = 0, weight_bytes = 0;  // in weight.file
  int64_t scale_begin = 0, scale_bytes = 0;    // in scale.file; 0 bytes for kPlain
};
/// Rows [begin, end), of one matrix where the shape has three dimensions.
RowBytes row_bytes(const EncodedTensor& tensor, int64_t begin, int64_t end);

/// Rows [begin, end) from those bytes, otherwise like decode_rows(). Errors: UserError for a scale
/// that is NaN.
void decode_row_bytes(const ExecContext& ctx, const EncodedTensor& tensor, int64_t begin,
                      int64_t end, const uint8_t* weight, const uint8_t* scale, void* out);

/// Rows [begin, end) in the decoded dtype, written to `out` (BF16 bits for quantised tensors, the
/// stored bytes for plain ones), aligned for that dtype. One rounding, to nearest even.
void decode_rows(const ExecContext& ctx, const EncodedTensor& tensor, int64_t begin, int64_t end,
                 void* out);

/// Rows [begin, end) as fp32: decoded as above, then widened (exact). Not for I64 and I32.
void decode_rows_f32(const ExecContext& ctx, const EncodedTensor& tensor, int64_t begin,
                     int64_t end, float* out);

/// A table of expert ids [V, K] as int32. Errors: UserError for an id outside [0, num_experts).
void decode_expert_table(const EncodedTensor& tensor, int64_t num_experts, int32_t* out);
/// Rows [begin, end) of it, from their bytes.
void decode_expert_rows(const EncodedTensor& tensor, int64_t num_experts, int64_t begin,
                        int64_t end, const uint8_t* bytes, int32_t* out);

/// config.json's quantization_config: null, or FP8 of 128 x 128 blocks.
/// Errors: UserError for any other method, with `origin` in front.
void check_quantization_config(const Json& config, const std::string& origin);

}  // namespace fathom
