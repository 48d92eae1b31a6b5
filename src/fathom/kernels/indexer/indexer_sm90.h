// Indexer on Hopper: scores of compressed entries, and the exact top-k of each query.
//   score[t, w] = sum_h a[t, h] * ReLU(q[t, h] . k[w]), 64 heads of 128 channels.
// Arithmetic: each dot product is one chain over 128 in wgmma steps of 16, fp32; heads are summed
// in four strided chains of 16 (fma, head 8 i + 2 c + {0, 1} in chain c, upwards), then as a tree.
// It depends on nothing but the query and the entry. Top-k: higher score first, -0 equals +0, then
// the lower index; picks ascending, -1 at the end.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::sm90 {

struct IndexerScoresSm90 {
  const __nv_bfloat16* q;      // [T, 64, 128]
  const float* weights;        // [T, 64], scaled
  const __nv_bfloat16* keys;   // [num_keys, 128]
  const int32_t* num_visible;  // [T] entries 0 .. num_visible[t] - 1 are scored; null: num_keys
  int T, num_keys;
  float* scores;  // [T, scores_ld]; what is not visible is left as it is
  int64_t scores_ld;
};
/// Enqueues the scores. Errors: cudaErrorInvalidValue or the launch's error.
cudaError_t indexer_scores_sm90(const IndexerScoresSm90& p, cudaStream_t stream);

struct TopkSm90 {
  const float* scores;         // [T, scores_ld]
  int64_t scores_ld;           // a multiple of 4; rows on 16 bytes, readable to their end
  const int32_t* num_visible;  // [T] how many scores count; null: num_scores
  int T, num_scores;           // num_scores: largest num_visible, any size
  int k;                       // at most 2,048
  int32_t* picks;              // [T, k] ascending, -1 beyond num_picks
  int32_t* num_picks;          // [T] = min(k, num_visible)
  // Set to 1 when a visible score is NaN, otherwise left alone; null: not looked for.
  int32_t* saw_nan;
};
/// Enqueues the selection; bits depend on the scores alone. Errors: as above.
cudaError_t topk_sm90(const TopkSm90& p, cudaStream_t stream);

}  // namespace fathom::sm90
