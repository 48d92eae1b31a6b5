// Pooling of tokens into compressed entries by a per-channel softmax, as an online recurrence in
// token order: it gives the same bits for a whole sequence, for chunks and for single tokens.
//
// Per channel the state is (m, l, a), empty = (−inf, 0, 0). A row (value v, gate g, ape included)
// does:
//   m' = max(m, g); r = exp(m − m') (0 when m = −inf); w = exp(g − m');
//   l = fma(l, r, w); a = fma(a, r, w·v); m = m'.   The entry is e = a / l.
// Ratio 4 (overlap, coff = 2): a token row has channels A = [0,c) and B = [c,2c). Entry w pools the
// A channels of tokens 4(w−1)..4w−1, then the B channels of tokens 4w..4w+3; entry 0 has no A part.
// Two states are kept: `open` (the window in progress: previous A, then B) and `next` (A of the
// window in progress, which opens the next one). Other ratios (coff = 1) keep `open` alone.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"

namespace fathom {

/// Floats of streaming state per compressor: coff states of (m, l, a), each [3, c]; open first.
constexpr int64_t compressor_state_size(int64_t coff, int64_t c) { return coff * 3 * c; }
/// The state before the first token of a sequence. In memory of the host.
void compressor_state_clear(float* state, int64_t coff, int64_t c);

/// One segment's new tokens at positions start_pos .. start_pos + num_tokens − 1.
struct CompressorFwd {
  const float* v;    // [num_tokens, coff·c] values
  const float* g;    // [num_tokens, coff·c] gates, without ape
  const float* ape;  // [ratio, coff·c], added to g: row = position mod ratio
  int64_t start_pos, num_tokens;
  int64_t ratio, coff, c;
  float* state;  // [compressor_state_size], read and updated; cleared before the first token
  float*
      entries;  // [num_completed, c]: entries start_pos/ratio .. (start_pos+num_tokens)/ratio − 1
};
void compressor_fwd(const ExecContext& ctx, const CompressorFwd& p);

/// One of several stretches of tokens that are independent of each other.
struct CompressorRun {
  int64_t first_row;    // of v and g
  int64_t first_entry;  // row of `entries`
  int64_t start_pos, num_tokens;
  float* state;  // as in CompressorFwd; null: a sequence begins, and what stays open is dropped
};
/// compressor_fwd of every run. Of p: v, g, ape, ratio, coff, c and entries, of all runs.
void compressor_fwd_runs(const ExecContext& ctx, const CompressorFwd& p,
                         const std::vector<CompressorRun>& runs);

/// Gradient for a whole segment that started at position 0 with an empty state.
///   p_j = exp(g_j − m)/l; dv_j = p_j·de; dg_j = p_j·(v_j − e)·de; e and (m, l) recomputed as
///   above.
/// Rows that reach no complete entry get zero. dape[pos mod ratio] += Σ_tokens dg, chain over
/// tokens.
struct CompressorBwd {
  const float* v;
  const float* g;  // without ape
  const float* ape;
  const float* dentries;  // [num_tokens / ratio, c]
  int64_t num_tokens, ratio, coff, c;
  float* dv;    // [num_tokens, coff·c], written
  float* dg;    // [num_tokens, coff·c], written
  float* dape;  // [ratio, coff·c], added to; may be null
};
void compressor_bwd(const ExecContext& ctx, const CompressorBwd& p);

}  // namespace fathom
