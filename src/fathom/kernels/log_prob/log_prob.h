// Log-softmax over the vocabulary without ever holding [T, V]: rows are worked in blocks.
//
// The vocabulary is cut into C = 8·⌈V/(8·3232)⌉ chunks of ⌈V/C⌉ columns (empty ones skipped).
// Logits are divided by the temperature (IEEE division). Per chunk: (max, Σexp(z − max)) with the
// sum in row_ops order; chunks merge upwards: m' = max(m, m_c); l = fma(l, exp(m−m'),
// l_c·exp(m_c−m')). logp(y) = z_y − (m + log l).
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

int64_t vocab_chunk_size(int64_t vocab);  // ⌈V/C⌉

/// m + log l of one row of logits, in the order above. z [V].
float log_sum_exp(const ExecContext& ctx, const float* z, int64_t vocab);

struct LogProbFwd {
  const float* hidden;     // [R, D] after the final norm
  const float* w_panels;   // head weight, panel layout of [V, D]
  const int32_t* targets;  // [R]
  int64_t R, D, V;
  float temperature;  // > 0
  float* log_probs;   // [R]
  float* lse;         // [R] m + log l of z/temperature; may be null
  float* entropy;     // [R] −Σ p log p; may be null
};
void log_prob_fwd(const ExecContext& ctx, const LogProbFwd& p);

/// Given d(loss)/d(logp) per row (and optionally d(loss)/d(entropy)): recomputes the logits block
/// by block; dz = (dlogp·(1[y] − p) + dentropy·(−p·(log p + H))) / temperature; dhidden = dz·W
/// (written), dW += dzᵀ·hidden (chain over rows; skipped when null).
struct LogProbBwd {
  LogProbFwd fwd;           // lse filled; entropy filled when dentropy is given
  const float* dlog_probs;  // [R]
  const float* dentropy;    // [R] or null
  float* dhidden;           // [R, D]
  float* dw_panels;         // or null
};
void log_prob_bwd(const ExecContext& ctx, const LogProbBwd& p);

}  // namespace fathom
