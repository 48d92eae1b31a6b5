// Sparse attention of V4 on Hopper, head_dim 512: forward for training, prefill and decoding.
//
// The list of a query is its window keys, then its picked entries, each in the order given (-1 is a
// hole). Arithmetic of one (query, head), the same whatever else is in the launch:
//   s_k = q . key_k, one chain over 512 in wgmma steps of 16, fp32; t_k = s_k * scale * log2(e)
//   the list in tiles of 64: when the largest t of a tile exceeds the reference m by more than 8
//   (at first: always), m becomes that largest t and what was summed is multiplied by 2^(old m - m)
//   p_k = 2^(t_k - m); l += sum of the tile's p_k in fp32 (four strided partial sums, a tree)
//   acc += bf16(p_k) * key_k, wgmma steps of 16 keys upwards
//   last the sink; o = acc / Z rounded to BF16 once; lse = natural log of Z.
// Holes weigh exactly zero, and a tile of holes changes no bit, so padded lists are equal to short
// ones. FP8 entries decode to BF16 values exactly, so both layouts give the same bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::sm90 {

enum class KvLayout {
  kBf16,  // rows of 512 bf16
  kFp8,   // pages of `page` entries: page * 576 bytes (448 e4m3, 64 bf16 each), then page * 8 bytes
          // of scales (7 exponents, one a block of 64, and a pad); page distance page_bytes
};
struct KvRows {
  const void* data = nullptr;
  int log2_page = 0;       // kFp8: entries of a page, as a power of two
  int64_t page_bytes = 0;  // kFp8: a multiple of 16
};

struct SparseAttentionSm90 {
  const __nv_bfloat16* q;  // [T, H, 512], rotated
  KvLayout layout = KvLayout::kBf16;
  KvRows window, entries;
  const int32_t* window_rows;  // [T, window_keys] rows of `window`, -1: hole
  int window_keys;             // a multiple of 64
  const int32_t* picks;        // [T, picks_stride] rows of `entries`, -1: hole; null: none
  int picks_stride;
  const int32_t* num_picks;  // [T] how many picks count; null: picks_stride of them
  const float* sink;         // [H]
  float scale;
  int T, H;            // H: a multiple of 64
  __nv_bfloat16* out;  // [T, H, 512]
  float* lse;          // [T, H], or null
};

int sparse_attention_sm90_num_variants();
const char* sparse_attention_sm90_variant_name(int variant);
bool sparse_attention_sm90_variant_fits(const SparseAttentionSm90& p, int variant);

/// Enqueues the forward. Allocates nothing, does not synchronise; may be captured into a graph.
/// Errors: cudaErrorInvalidValue for shapes outside the bounds above, or the launch's error.
cudaError_t sparse_attention_sm90(const SparseAttentionSm90& p, cudaStream_t stream);
cudaError_t sparse_attention_sm90_variant(const SparseAttentionSm90& p, int variant,
                                          cudaStream_t stream);

}  // namespace fathom::sm90
