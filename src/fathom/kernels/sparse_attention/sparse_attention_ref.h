// The equations of sparse_attention.h in fp64, with every key in one array.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

struct SparseAttentionRef {
  int64_t H, hd;
  double scale;
  std::vector<double> q;                   // [T, H, hd]
  std::vector<double> keys;                // [num_keys, hd]
  std::vector<double> sink;                // [H]
  std::vector<std::vector<int64_t>> seen;  // [T] keys of each query
  // For o with P rounded to BF16 in chunks: the number of each query's first keys that are its
  // window. Empty: not rounded.
  std::vector<int64_t> num_window = {};
};

struct SparseAttentionOutRef {
  std::vector<double> o;    // [T, H, hd]
  std::vector<double> lse;  // [T, H]
};
SparseAttentionOutRef sparse_attention_ref(const SparseAttentionRef& p);

struct SparseAttentionGradsRef {
  std::vector<double> dq, dkeys, dsink;  // shaped as q, keys, sink
};
SparseAttentionGradsRef sparse_attention_bwd_ref(const SparseAttentionRef& p,
                                                 const std::vector<double>& dout);

}  // namespace fathom
