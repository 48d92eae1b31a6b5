// Expert selection and weights: s = sqrt(softplus(z)), top-k of s + bias or a table by token id.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

/// s_e = sqrt(softplus(z_e)), softplus(z) = max(z,0) + log1p(exp(−|z|)).
/// Slots, in order of preference: replayed indices as they are; hash: the table's row of the token,
/// duplicates kept; else the top-k of s + bias, larger first, then the lower id.
/// w_j = s[idx_j] / (Σ_j s[idx_j] + 1e-20) · scaling (sum over slots upwards), from unbiased s.
struct RouterFwd {
  const float* logits;        // [T, E]
  const float* bias;          // [E], or null for hash layers
  const int32_t* tid2eid;     // [vocab, K] hash table, or null
  const int32_t* token_ids;   // [T], needed with tid2eid
  const int32_t* replay_idx;  // [T, K] to use instead of choosing, or null
  int64_t T, E, K;
  float scaling;
  int32_t* topk_idx;    // [T, K] slots
  float* topk_weights;  // [T, K]
};
/// Errors: UserError when a score is NaN or an index from the table or the replay is out of range.
void router_fwd(const ExecContext& ctx, const RouterFwd& p);

/// ds_j = (c/Σ)(dw_j − Σ_i dw_i s_i/Σ); dz = ds·σ(z)/(2s), evaluated as e^{z/2}/2 for z < −40;
/// duplicates of one expert add up in slot order. dlogits [T, E] is written (zero elsewhere).
struct RouterBwd {
  const float* logits;         // [T, E]
  const int32_t* topk_idx;     // [T, K]
  const float* dtopk_weights;  // [T, K]
  int64_t T, E, K;
  float scaling;
  float* dlogits;  // [T, E]
};
void router_bwd(const ExecContext& ctx, const RouterBwd& p);

/// Rows of experts, sorted by expert and inside an expert by (token, slot).
/// @param topk_idx [num_slots] the expert of each (token, slot)
/// @param slot_row [num_slots] the row of each (token, slot)
/// @param row_begin [E + 1] first row of each expert
void sort_by_expert(const ExecContext& ctx, int64_t num_slots, int64_t E, const int32_t* topk_idx,
                    int32_t* slot_row, int64_t* row_begin);

}  // namespace fathom
