// The two builds of the sparse attention loops, called by sparse_attention.cc.
#pragma once

#include <cstdint>

#include "fathom/kernels/sparse_attention/sparse_attention.h"

namespace fathom {

/// A block of queries of the backward pass and what its first pass leaves for the second. The P and
/// dS of query t, head h and the j-th key of its list are at pair_begin[t - query_begin] * H + h *
/// (number of keys of t) + j.
struct AttentionBlock {
  int64_t query_begin, query_end;
  const int64_t* pair_begin;  // [queries of the block + 1] first (query, key) pair of a query
  float* p;                   // probabilities
  float* ds;                  // gradients of the logits, scaled
  float* delta;               // [T, H]
};

/// The (query, key) pairs of a block grouped by key, queries upwards within a key.
struct PairsOfKeys {
  const int64_t* key_begin;  // [num_keys + 1] first pair of a key
  const int32_t* query;      // [pairs]
  const int32_t* slot;       // [pairs] the key's place in the query's key list
};

#define FATHOM_DECLARE_SPARSE_ATTENTION(isa)                                                       \
  namespace isa {                                                                                  \
  /* Outputs of (query, head) items [begin, end), item = t * H + h. keys: room for every key of    \
     one query; decoded: [entries of one query that are not kF32, hd]; scratch: max(window_count,  \
     kAttentionChunkKeys) + 2 * hd floats. */                                                      \
  void sparse_attention_fwd_items(const SparseAttentionFwd& p, const float** keys, float* decoded, \
                                  float* scratch, int64_t begin, int64_t end);                     \
  /* dq, delta, P and dS of queries [begin, end) of the block. keys as above. */                   \
  void sparse_attention_bwd_queries(const SparseAttentionBwd& p, const AttentionBlock& block,      \
                                    const float** keys, int64_t begin, int64_t end);               \
  /* Adds to the gradients of keys [begin, end); dkeys belongs to key `begin`. */                  \
  void sparse_attention_bwd_keys(const SparseAttentionBwd& p, const AttentionBlock& block,         \
                                 const PairsOfKeys& pairs, int64_t begin, int64_t end,             \
                                 float* dkeys);                                                    \
  /* Adds to dsink of heads [begin, end). */                                                       \
  void sparse_attention_bwd_sink(const SparseAttentionBwd& p, const float* delta, int64_t begin,   \
                                 int64_t end);                                                     \
  }
FATHOM_DECLARE_SPARSE_ATTENTION(avx2)
FATHOM_DECLARE_SPARSE_ATTENTION(avx512)
#undef FATHOM_DECLARE_SPARSE_ATTENTION

}  // namespace fathom
