// Attention of V4: one shared latent K = V vector per key, a window of raw keys plus compressed
// entries, a learned sink per head. Forward and backward, fp32.
//
//   s_k = (q_h · key_k) · scale;   o_h = Σ_k e^(s_k − m) key_k / (Σ_k e^(s_k − m) + e^(sink_h − m))
//
// Order: key list = window keys by ascending position, then compressed entries by ascending index.
// Chunk 0 is the window, then chunks of 512 compressed keys. In a chunk: m_c = max s; p_k = exp(s_k
// − m_c); l_c = row_sum(p) (row_ops order); a_c[d] = fma chain over k upwards of p_k·key_k[d].
// Chunks are merged left to right: m' = max(m, m_c); l = l·exp(m−m') + l_c·exp(m_c−m') (as one
// fma); a likewise. Sink last: m' = max(m, sink), l as before with l_c = 1. o = a / l. lse = m +
// log(l).
// With bf16_p, p_k is rounded to BF16 where it weighs the keys (not in l). The backward passes
// through that rounding: its P is not rounded.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/quant/entry_format.h"  // KeyPages

namespace fathom {

constexpr int64_t kAttentionChunkKeys = 512;

struct SparseAttentionFwd {
  const float* q;          // [T, H, hd], rotated
  const float* window_kv;  // rows of hd floats: every segment's earlier rows, then its new rows
  const int64_t* window_begin;    // [T] first window row of the query
  const int32_t* window_count;    // [T] number of window rows, ascending positions, >= 1
  const KeyPages* segment_pages;  // [num_segments] compressed entries; backward: kF32 only
  const int32_t* segment_of;      // [T] which segment a query belongs to
  const int32_t* picks;           // [T, picks_stride] ascending entry indices, or null: entries
                                  // 0 .. num_picks[t]−1
  int64_t picks_stride;
  const int32_t* num_picks;  // [T] number of compressed entries seen
  const float* sink;         // [H]
  float scale;
  int64_t T, H, hd;
  int64_t max_window, max_picks;  // no window_count, no num_picks is larger
  float* o;                       // [T, H, hd], not yet rotated back
  float* lse;                     // [T, H] m + log(l) with the sink inside; may be null
  bool bf16_p = false;
};
void sparse_attention_fwd(const ExecContext& ctx, const SparseAttentionFwd& p);

/// Gradients. Δ = Σ_d o·do (dot order); P = exp(s − lse); dS = P·(do·key − Δ)·scale.
///   dq_h = chain over the key list of dS_k·key_k (written, not added)
///   dkey_k += Σ (dS·q_h + P·do_h): chain over (query upwards, head upwards), dS·q first, then P·do
///   dsink_h += −Δ·exp(sink_h − lse): chain over queries
/// Compressed gradients go to dcompressed: entry e of segment s at
/// dcompressed + (entry_begin[s] + e)·hd. Key gradients and dsink continue from what is there.
struct SparseAttentionBwd {
  SparseAttentionFwd fwd;  // as in the forward, with o and lse filled
  const float* do_;        // [T, H, hd]
  int64_t num_window_rows;
  const int64_t* entry_begin;  // [num_segments + 1]
  int64_t num_segments;
  int64_t num_entries;  // entry_begin[num_segments]
  float* dq;            // [T, H, hd]
  float* dwindow_kv;    // [num_window_rows, hd]
  float* dcompressed;   // [entry_begin[num_segments], hd]; may be null when there are no entries
  float* dsink;         // [H]
};
void sparse_attention_bwd(const ExecContext& ctx, const SparseAttentionBwd& p);

}  // namespace fathom
