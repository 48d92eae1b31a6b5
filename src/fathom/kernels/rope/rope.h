// Rotary position embedding of the last `rope_dim` channels, interleaved pairs.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"

namespace fathom {

struct RopeScaling {  // YaRN; factor 1 means none
  double factor = 1.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  int64_t original_max_position_embeddings = 0;
};

/// f_i for i < rope_dim/2: base^(−2i/rope_dim) in fp64, blended by YaRN when factor != 1
/// (docs: spec of the model, section on RoPE), rounded once to fp32.
///   dim(n) = rope_dim·ln(original/(2πn)) / (2·ln base); low = max(floor(dim(beta_fast)), 0);
///   high = min(ceil(dim(beta_slow)), rope_dim − 1); ramp_i = clamp((i−low)/(high−low), 0, 1)
///   (high == low: high += 0.001, as public implementations do); f_i ← f_i/factor·ramp +
///   f_i·(1−ramp)
std::vector<float> rope_frequencies(int64_t rope_dim, double base, const RopeScaling& scaling);

/// cos and sin for the positions at hand: angle = float(position)·f_i rounded to fp32, its sine and
/// cosine computed in fp64 by our own code and rounded once.
/// @param cos, sin  [num_positions, num_frequencies]
void rope_table(const ExecContext& ctx, const int64_t* positions, int64_t num_positions,
                const float* frequencies, int64_t num_frequencies, float* cos, float* sin);

/// In place on x [num_rows, num_heads, head_dim]; row r uses table row r:
///   x0' = x0·cos − x1·sin, x1' = x0·sin + x1·cos for pairs of the last rope_dim channels
/// (computed as fma(x0, cos, −(x1·sin)) and fma(x0, sin, x1·cos)).
/// `inverse` rotates by the negative angle: the output rotation, and the gradient of the forward.
struct RopeApply {
  float* x;
  int64_t row_stride;   // floats between rows
  int64_t head_stride;  // floats between heads
  int64_t num_rows, num_heads, head_dim, rope_dim;
  const float* cos;  // [num_rows, rope_dim/2]
  const float* sin;
  bool inverse = false;
};
void rope_apply(const ExecContext& ctx, const RopeApply& p);

}  // namespace fathom
