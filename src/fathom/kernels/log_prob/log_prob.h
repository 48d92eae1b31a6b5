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
/// (written; one chain over the columns of each eighth of the chunks from 0, eighths added by a
/// pairwise tree), dW += dzᵀ·hidden (chain over rows; skipped when null).
struct LogProbBwd {
  LogProbFwd fwd;           // lse filled; entropy filled when dentropy is given
  const float* dlog_probs;  // [R]
  const float* dentropy;    // [R] or null
  float* dhidden;           // [R, D]
  float* dw_panels;         // or null
};
void log_prob_bwd(const ExecContext& ctx, const LogProbBwd& p);

// The same over several ranks, each with a run of whole chunks of the head. On the CPU.

/// What is known of a row's logits in one chunk: m = max, l = Σ e^(z−m), Σ (z−m) e^(z−m).
struct SoftmaxStats {
  float max, sum, weighted;
};

/// The columns of the head that a rank has.
struct VocabularyColumns {
  int64_t first_column = 0;  // the beginning of a chunk
  int64_t num_columns = 0;   // whole chunks, or up to the end of the vocabulary; may be 0
};
int64_t num_chunks(const VocabularyColumns& shard, int64_t vocab);

/// @param p its w_panels are those of the shard's columns; its results are not written.
/// @param stats [R, num_chunks(shard)] of the shard's chunks, with entropy where p.entropy is given
/// @param target_logits [R] written where the target is among the shard's columns
void log_prob_shard_fwd(const ExecContext& ctx, const LogProbFwd& p, const VocabularyColumns& shard,
                        SoftmaxStats* stats, float* target_logits);
/// p's results of R rows, from the stats of all chunks.
/// @param stats row r's are stats[r * num_chunks ...], upwards; @param target_logits [R].
void log_prob_merge(const ExecContext& ctx, const LogProbFwd& p, int64_t num_chunks,
                    const SoftmaxStats* stats, const float* target_logits);
/// As log_prob_bwd, over the shard's columns alone: dhidden is their part of the sum, dw_panels
/// theirs. Shards of whole eighths, added by a pairwise tree, give what log_prob_bwd gives.
void log_prob_shard_bwd(const ExecContext& ctx, const LogProbBwd& p,
                        const VocabularyColumns& shard);

}  // namespace fathom
