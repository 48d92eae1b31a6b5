// Backward of sparse_attention_sm90.h: deterministic, without float atomics.
//   P = exp(s - lse), dS = P (do . key - delta) scale, delta = sum_d o do (fp32, fixed tree)
//   dq_h = sum_k bf16(dS_k) key_k: wgmma chain over the list, rounded to BF16 once
//   dkey_k += for queries upwards, blocks of 64 heads upwards: bf16(sum_h bf16(dS) q_h + bf16(P)
//   do_h),
//     each such sum in fp32 on tensor cores; the additions are one fp32 chain that goes on from the
//     buffer's value, so cutting queries into passes changes no bit
//   dsink_h += - sum_t delta exp(sink - lse), 256 strided chains and a tree
#pragma once

#include "fathom/kernels/sparse_attention/sparse_attention_sm90.h"

namespace fathom::sm90 {

struct SparseAttentionBwdSm90 {
  SparseAttentionSm90 fwd;    // BF16 rows; out and lse as the forward left them
  const __nv_bfloat16* dout;  // [T, H, 512]
  int num_window_rows, num_entries;
  __nv_bfloat16* dq;     // [T, H, 512], written
  float* dwindow;        // [num_window_rows, 512], added to
  float* dentries;       // [num_entries, 512], added to; may be null without picks
  float* dsink;          // [H], added to
  int queries_per_pass;  // bounds the workspace; 1,024 or more fill the device
  void* workspace;       // on 256 bytes
  size_t workspace_bytes;
};

/// Bytes of workspace for these shapes and passes.
size_t sparse_attention_bwd_sm90_bytes(const SparseAttentionBwdSm90& p);

/// Enqueues the backward. A list may name a row once. Allocates nothing, does not synchronise.
/// Errors: cudaErrorInvalidValue for other layouts, shapes or a workspace too small, or the
/// launch's.
cudaError_t sparse_attention_bwd_sm90(const SparseAttentionBwdSm90& p, cudaStream_t stream);

}  // namespace fathom::sm90
