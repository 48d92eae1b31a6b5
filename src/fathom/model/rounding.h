// What a precision mode does to activations between the products. One object per model; in fp32
// every function gives its argument back. docs/numerics.md lists where each is applied.
//
// All are straight-through in the backward pass: the forward's rounded values are what gradients
// are computed from, in fp32, and a gradient passes a rounding unchanged.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/base/precision.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

class Rounding {
 public:
  Rounding() = default;  // fp32
  explicit Rounding(Precision precision) : precision_(precision) {}
  Precision precision() const { return precision_; }

  /// An activation that the parity modes keep in BF16, rounded in place. @return x.
  Tensor activation(const ExecContext& ctx, Tensor x) const;

  /// Latent rows [.., hd] on their way to attention and cache: in parity-fp8 through FP8 blocks,
  /// but for the last rope_dim channels. In place. @return rows.
  Tensor latent(const ExecContext& ctx, Tensor rows, int64_t rope_dim) const;

  /// Indexer queries or keys, packed rows of `width`: in parity-fp8 Hadamard-rotated and through
  /// FP8 blocks. In place. @return rows.
  Tensor indexer(const ExecContext& ctx, Tensor rows, int64_t width) const;

  /// Whether attention rounds its probabilities to BF16 before they weigh the keys.
  bool bf16_p() const { return precision_ != Precision::kFp32; }

 private:
  Precision precision_ = Precision::kFp32;
};

}  // namespace fathom
