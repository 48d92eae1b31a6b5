#include "fathom/kernels/sparse_attention/sparse_attention_cpu.h"

#include "fathom/kernels/sparse_attention/dots.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

/// Addresses of a query's keys in key list order; returns how many.
int64_t list_keys(const SparseAttentionFwd& p, int64_t t, const float** keys) {
  int64_t count = 0;
  const float* window = p.window_kv + p.window_begin[t] * p.hd;
  for (; count < p.window_count[t]; ++count) keys[count] = window + count * p.hd;
  const int64_t num_picks = p.num_picks[t];
  if (num_picks == 0) return count;
  const KeyPages& pages = p.segment_pages[p.segment_of[t]];
  const int32_t* picks = p.picks != nullptr ? p.picks + t * p.picks_stride : nullptr;
  for (int64_t j = 0; j < num_picks; ++j) {
    const int64_t entry = picks != nullptr ? picks[j] : j;
    keys[count++] =
        pages.pages[entry / pages.entries_per_page] + entry % pages.entries_per_page * p.hd;
  }
  return count;
}

/// out[d] = chain over keys upwards, from zero, of weights[k] * key_k[d], for kVectors vectors at
/// d.
template <int kVectors>
inline void weighted_keys_part(const float* weights, const float* const* keys, int64_t count,
                               int64_t d, float* out) {
  F16 acc[kVectors];
  for (int v = 0; v < kVectors; ++v) acc[v] = zero();
  for (int64_t k = 0; k < count; ++k) {
    const F16 w = set1(weights[k]);
    const float* key = keys[k] + d;
    for (int v = 0; v < kVectors; ++v) acc[v] = fma(w, load(key + v * kLanes), acc[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(out + d + v * kLanes, acc[v]);
}

inline void weighted_keys(const float* weights, const float* const* keys, int64_t count, int64_t hd,
                          float* out) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= hd; d += 4 * kLanes) {
    weighted_keys_part<4>(weights, keys, count, d, out);
  }
  for (; d + kLanes <= hd; d += kLanes) weighted_keys_part<1>(weights, keys, count, d, out);
  if (d < hd) {
    const int64_t n = hd - d;
    F16 acc = zero();
    for (int64_t k = 0; k < count; ++k) {
      acc = fma(set1(weights[k]), load_first(keys[k] + d, n), acc);
    }
    store_first(out + d, acc, n);
  }
}

/// values[i] = f(values[i]) in vectors.
template <typename F>
inline void map(float* values, int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(values + i, f(load(values + i)));
  if (i < n) store_first(values + i, f(load_first(values + i, n - i)), n - i);
}

/// s_k = (q . key_k) * scale
inline void scores(const float* q, const float* const* keys, int64_t count, int64_t hd, float scale,
                   float* s) {
  dots(q, keys, count, hd, s);
  const F16 factor = set1(scale);
  map(s, count, [&](F16 v) { return mul(v, factor); });
}

struct Softmax {
  float m, l;  // a lies beside it
};

/// One chunk of keys: (m, l) and a [hd]. `s`: room for `count` floats.
inline Softmax attend_chunk(const float* q, const float* const* keys, int64_t count, int64_t hd,
                            float scale, float* s, float* a) {
  scores(q, keys, count, hd, scale, s);
  const float m = row_max(s, count);
  const F16 shift = set1(m);
  map(s, count, [&](F16 v) { return exp(sub(v, shift)); });
  const float l = row_sum(s, count);
  weighted_keys(s, keys, count, hd, a);
  return {m, l};
}

}  // namespace

void sparse_attention_fwd_items(const SparseAttentionFwd& p, const float** keys, float* scratch,
                                int64_t begin, int64_t end) {
  float* a = scratch;
  float* chunk_a = a + p.hd;
  float* s = chunk_a + p.hd;
  int64_t listed = -1, count = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t t = item / p.H, h = item % p.H;
    if (t != listed) count = list_keys(p, t, keys), listed = t;
    const float* q = p.q + item * p.hd;
    int64_t next = p.window_count[t];
    Softmax total = attend_chunk(q, keys, next, p.hd, p.scale, s, a);
    while (next < count) {
      const int64_t n = count - next < kAttentionChunkKeys ? count - next : kAttentionChunkKeys;
      const Softmax chunk = attend_chunk(q, keys + next, n, p.hd, p.scale, s, chunk_a);
      next += n;
      const float m = chunk.m > total.m ? chunk.m : total.m;
      const float r = exp1(total.m - m), r_chunk = exp1(chunk.m - m);
      total = {m, __builtin_fmaf(total.l, r, chunk.l * r_chunk)};
      for (int64_t d = 0; d < p.hd; ++d) a[d] = __builtin_fmaf(a[d], r, chunk_a[d] * r_chunk);
    }
    const float sink = p.sink[h];
    const float m = sink > total.m ? sink : total.m;
    const float r = exp1(total.m - m);
    const float l = __builtin_fmaf(total.l, r, exp1(sink - m));
    const F16 factor = set1(r), divisor = set1(l);
    float* o = p.o + item * p.hd;
    int64_t d = 0;
    for (; d + kLanes <= p.hd; d += kLanes) {
      store(o + d, div(mul(load(a + d), factor), divisor));
    }
    if (d < p.hd) {
      const int64_t n = p.hd - d;
      store_first(o + d, div(mul(load_first(a + d, n), factor), divisor), n);
    }
    if (p.lse != nullptr) p.lse[item] = m + log1(l);
  }
}

void sparse_attention_bwd_queries(const SparseAttentionBwd& b, const AttentionBlock& block,
                                  const float** keys, float* scratch, int64_t begin, int64_t end) {
  const SparseAttentionFwd& p = b.fwd;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t count = list_keys(p, t, keys);
    float* prob = scratch;
    float* ds = scratch + count;
    const int64_t first_pair = block.pair_begin[t - block.query_begin];
    for (int64_t h = 0; h < p.H; ++h) {
      const int64_t item = t * p.H + h;
      const float* grad = b.do_ + item * p.hd;
      const float delta = dot(p.o + item * p.hd, grad, p.hd);
      block.delta[item] = delta;
      scores(p.q + item * p.hd, keys, count, p.hd, p.scale, prob);
      const F16 lse = set1(p.lse[item]);
      map(prob, count, [&](F16 s) { return exp(sub(s, lse)); });
      dots(grad, keys, count, p.hd, ds);
      for (int64_t k = 0; k < count; ++k) {
        ds[k] = prob[k] * (ds[k] - delta) * p.scale;
        block.p[(first_pair + k) * p.H + h] = prob[k];
        block.ds[(first_pair + k) * p.H + h] = ds[k];
      }
      weighted_keys(ds, keys, count, p.hd, b.dq + item * p.hd);
    }
  }
}

namespace {

/// kVectors vectors at d of one key's gradient.
template <int kVectors>
inline void add_key_gradient(const SparseAttentionBwd& b, const AttentionBlock& block,
                             const KeyUses& uses, int64_t d, float* dkey) {
  const SparseAttentionFwd& p = b.fwd;
  F16 acc[kVectors];
  for (int v = 0; v < kVectors; ++v) acc[v] = load(dkey + d + v * kLanes);
  for (int64_t i = uses.begin; i < uses.end; ++i) {
    const int64_t row = uses.query[i] * p.H * p.hd + d;
    const float* q = p.q + row;
    const float* grad = b.do_ + row;
    const float* ds = block.ds + uses.pair[i] * p.H;
    const float* prob = block.p + uses.pair[i] * p.H;
    for (int64_t h = 0; h < p.H; ++h) {
      const F16 ds_h = set1(ds[h]), p_h = set1(prob[h]);
      for (int v = 0; v < kVectors; ++v) {
        acc[v] = fma(ds_h, load(q + h * p.hd + v * kLanes), acc[v]);
        acc[v] = fma(p_h, load(grad + h * p.hd + v * kLanes), acc[v]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) store(dkey + d + v * kLanes, acc[v]);
}

}  // namespace

void sparse_attention_bwd_key(const SparseAttentionBwd& b, const AttentionBlock& block,
                              const KeyUses& uses, float* dkey) {
  const SparseAttentionFwd& p = b.fwd;
  int64_t d = 0;
  for (; d + 4 * kLanes <= p.hd; d += 4 * kLanes) add_key_gradient<4>(b, block, uses, d, dkey);
  for (; d + kLanes <= p.hd; d += kLanes) add_key_gradient<1>(b, block, uses, d, dkey);
  if (d == p.hd) return;
  const int64_t n = p.hd - d;
  F16 acc = load_first(dkey + d, n);
  for (int64_t i = uses.begin; i < uses.end; ++i) {
    for (int64_t h = 0; h < p.H; ++h) {
      const int64_t at = (uses.query[i] * p.H + h) * p.hd + d;
      acc = fma(set1(block.ds[uses.pair[i] * p.H + h]), load_first(p.q + at, n), acc);
      acc = fma(set1(block.p[uses.pair[i] * p.H + h]), load_first(b.do_ + at, n), acc);
    }
  }
  store_first(dkey + d, acc, n);
}

void sparse_attention_bwd_sink(const SparseAttentionBwd& b, const float* delta, int64_t begin,
                               int64_t end) {
  const SparseAttentionFwd& p = b.fwd;
  for (int64_t h = begin; h < end; h += kLanes) {
    const int64_t n = end - h;
    const F16 sink = load_first(p.sink + h, n);
    F16 acc = load_first(b.dsink + h, n);
    for (int64_t t = 0; t < p.T; ++t) {
      const F16 lse = load_first(p.lse + t * p.H + h, n);
      acc = fnma(load_first(delta + t * p.H + h, n), exp(sub(sink, lse)), acc);
    }
    store_first(b.dsink + h, acc, n);
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
