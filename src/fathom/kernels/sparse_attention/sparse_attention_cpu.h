// The two builds of the sparse attention loops, called by sparse_attention.cc.
#pragma once

#include <cstdint>

#include "fathom/kernels/sparse_attention/sparse_attention.h"

namespace fathom {

/// A block of queries of the backward pass and what its first pass leaves for the second.
struct AttentionBlock {
  int64_t query_begin, query_end;
  const int64_t* pair_begin;  // [queries of the block + 1] first (query, key) pair of a query
  float* p;                   // [pairs, H] probabilities
  float* ds;                  // [pairs, H] gradients of the logits, scaled
  float* delta;               // [T, H]
};

/// The (query, key) pairs of one key, queries upwards.
struct KeyUses {
  const int32_t* query;  // [pairs, grouped by key]
  const int32_t* pair;   // index into p and ds
  int64_t begin, end;
};

#define FATHOM_DECLARE_SPARSE_ATTENTION(isa)                                                       \
  namespace isa {                                                                                  \
  /* Outputs of (query, head) items [begin, end), item = t * H + h. keys: room for every key of    \
     one query; scratch: max(window_count, kAttentionChunkKeys) + 2 * hd floats. */                \
  void sparse_attention_fwd_items(const SparseAttentionFwd& p, const float** keys, float* scratch, \
                                  int64_t begin, int64_t end);                                     \
  /* dq, delta, P and dS of queries [begin, end) of the block. keys as above; scratch: twice the   \
     number of keys of one query. */                                                               \
  void sparse_attention_bwd_queries(const SparseAttentionBwd& p, const AttentionBlock& block,      \
                                    const float** keys, float* scratch, int64_t begin,             \
                                    int64_t end);                                                  \
  /* Adds to the gradient of one key. */                                                           \
  void sparse_attention_bwd_key(const SparseAttentionBwd& p, const AttentionBlock& block,          \
                                const KeyUses& uses, float* dkey);                                 \
  /* Adds to dsink of heads [begin, end). */                                                       \
  void sparse_attention_bwd_sink(const SparseAttentionBwd& p, const float* delta, int64_t begin,   \
                                 int64_t end);                                                     \
  }
FATHOM_DECLARE_SPARSE_ATTENTION(avx2)
FATHOM_DECLARE_SPARSE_ATTENTION(avx512)
#undef FATHOM_DECLARE_SPARSE_ATTENTION

}  // namespace fathom
