#include "fathom/kernels/sparse_attention/sparse_attention_cpu.h"

#include "fathom/kernels/quant/bf16_round.h"
#include "fathom/kernels/quant/entry_decode.h"
#include "fathom/kernels/sparse_attention/dots.h"
#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

/// Addresses of a query's keys in key list order, stored entries decoded; returns how many.
int64_t list_keys(const SparseAttentionFwd& p, int64_t t, const float** keys, float* decoded) {
  int64_t count = 0;
  const float* window = p.window_kv + p.window_begin[t] * p.hd;
  for (; count < p.window_count[t]; ++count) keys[count] = window + count * p.hd;
  const int64_t num_picks = p.num_picks[t];
  if (num_picks == 0) return count;
  const KeyPages& pages = p.segment_pages[p.segment_of[t]];
  const int32_t* picks = p.picks != nullptr ? p.picks + t * p.picks_stride : nullptr;
  for (int64_t j = 0; j < num_picks; ++j) {
    const int64_t entry = picks != nullptr ? picks[j] : j;
    keys[count++] = read_entry(pages.format, entry_at(pages, entry), decoded + j * p.hd);
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
inline Softmax attend_chunk(const SparseAttentionFwd& p, const float* q, const float* const* keys,
                            int64_t count, float* s, float* a) {
  scores(q, keys, count, p.hd, p.scale, s);
  const float m = row_max(s, count);
  const F16 shift = set1(m);
  map(s, count, [&](F16 v) { return exp(sub(v, shift)); });
  const float l = row_sum(s, count);
  if (p.bf16_p) map(s, count, [](F16 v) { return round_to_bf16(v); });
  weighted_keys(s, keys, count, p.hd, a);
  return {m, l};
}

}  // namespace

void sparse_attention_fwd_items(const SparseAttentionFwd& p, const float** keys, float* decoded,
                                float* scratch, int64_t begin, int64_t end) {
  float* a = scratch;
  float* chunk_a = a + p.hd;
  float* s = chunk_a + p.hd;
  int64_t listed = -1, count = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t t = item / p.H, h = item % p.H;
    if (t != listed) count = list_keys(p, t, keys, decoded), listed = t;
    const float* q = p.q + item * p.hd;
    int64_t next = p.window_count[t];
    Softmax total = attend_chunk(p, q, keys, next, s, a);
    while (next < count) {
      const int64_t n = count - next < kAttentionChunkKeys ? count - next : kAttentionChunkKeys;
      const Softmax chunk = attend_chunk(p, q, keys + next, n, s, chunk_a);
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
                                  const float** keys, int64_t begin, int64_t end) {
  const SparseAttentionFwd& p = b.fwd;
  const F16 scale = set1(p.scale);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t count = list_keys(p, t, keys, nullptr);
    const int64_t first = block.pair_begin[t - block.query_begin] * p.H;
    for (int64_t h = 0; h < p.H; ++h) {
      const int64_t item = t * p.H + h;
      float* prob = block.p + first + h * count;
      float* ds = block.ds + first + h * count;
      const float* grad = b.do_ + item * p.hd;
      const float delta_h = dot(p.o + item * p.hd, grad, p.hd);
      block.delta[item] = delta_h;
      dots(p.q + item * p.hd, keys, count, p.hd, prob);
      dots(grad, keys, count, p.hd, ds);
      const F16 lse = set1(p.lse[item]), delta = set1(delta_h);
      for (int64_t k = 0; k < count; k += kLanes) {
        const int64_t n = count - k;
        const F16 p_k = exp(sub(mul(load_first(prob + k, n), scale), lse));
        const F16 ds_k = mul(mul(p_k, sub(load_first(ds + k, n), delta)), scale);
        store_first(prob + k, p_k, n);
        store_first(ds + k, ds_k, n);
      }
      weighted_keys(ds, keys, count, p.hd, b.dq + item * p.hd);
    }
  }
}

namespace {

// Neighbouring keys are mostly seen by the same queries, so their gradients are accumulated
// together and share the loads of q and do. As many vectors of each as there are registers for.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int kKeyVectors = 4;
#else
constexpr int kKeyVectors = 1;
#endif

/// A key's next use, and where the P and dS of its heads start.
struct UseCursor {
  int64_t next, end;
  const float *p, *ds;
};

/// Channels d .. d + kVectors * 16 of the gradients of keys [key, key + kKeys); with kVectors 0,
/// the last hd - d < 16 channels.
template <int kKeys, int kVectors>
void add_key_gradients(const SparseAttentionBwd& b, const AttentionBlock& block,
                       const PairsOfKeys& pairs, int64_t key, int64_t d, float* dkeys) {
  const SparseAttentionFwd& p = b.fwd;
  constexpr int kCount = kVectors > 0 ? kVectors : 1;
  const int64_t rest = p.hd - d;
  const auto get = [&](const float* from, int v) {
    return kVectors > 0 ? load(from + v * kLanes) : load_first(from, rest);
  };
  UseCursor uses[kKeys];
  F16 acc[kKeys][kCount];
#pragma GCC unroll 4
  for (int k = 0; k < kKeys; ++k) {
    uses[k] = {pairs.key_begin[key + k], pairs.key_begin[key + k + 1], nullptr, nullptr};
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) acc[k][v] = get(dkeys + k * p.hd + d, v);
  }
  for (;;) {
    // The next query that sees any of the keys.
    int64_t t = INT64_MAX;
    for (const UseCursor& use : uses) {
      if (use.next < use.end && pairs.query[use.next] < t) t = pairs.query[use.next];
    }
    if (t == INT64_MAX) break;
    const int64_t* begin = block.pair_begin + (t - block.query_begin);
    const int64_t first = begin[0] * p.H, count = begin[1] - begin[0];
    bool sees[kKeys], all = true;
    for (int k = 0; k < kKeys; ++k) {
      UseCursor& use = uses[k];
      sees[k] = use.next < use.end && pairs.query[use.next] == t;
      all = all && sees[k];
      if (!sees[k]) continue;
      const int64_t at = first + pairs.slot[use.next++];
      use.p = block.p + at;
      use.ds = block.ds + at;
    }
    const float* q = p.q + t * p.H * p.hd + d;
    const float* grad = b.do_ + t * p.H * p.hd + d;
    const auto add_heads = [&](const auto& takes_part) {
      for (int64_t h = 0; h < p.H; ++h) {
        F16 q_h[kCount], grad_h[kCount];
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          q_h[v] = get(q + h * p.hd, v);
          grad_h[v] = get(grad + h * p.hd, v);
        }
#pragma GCC unroll 4
        for (int k = 0; k < kKeys; ++k) {
          if (!takes_part(k)) continue;
          const F16 ds = set1(uses[k].ds[h * count]), prob = set1(uses[k].p[h * count]);
#pragma GCC unroll 4
          for (int v = 0; v < kCount; ++v) {
            acc[k][v] = fma(prob, grad_h[v], fma(ds, q_h[v], acc[k][v]));
          }
        }
      }
    };
    if (all) {
      add_heads([](int) { return true; });
    } else {
      add_heads([&](int k) { return sees[k]; });
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kKeys; ++k) {
    float* out = dkeys + k * p.hd + d;
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) {
      if (kVectors > 0) {
        store(out + v * kLanes, acc[k][v]);
      } else {
        store_first(out, acc[k][v], rest);
      }
    }
  }
}

template <int kKeys>
void add_key_gradients_of(const SparseAttentionBwd& b, const AttentionBlock& block,
                          const PairsOfKeys& pairs, int64_t key, float* dkeys) {
  const int64_t hd = b.fwd.hd;
  int64_t d = 0;
  for (; d + kKeyVectors * kLanes <= hd; d += kKeyVectors * kLanes) {
    add_key_gradients<kKeys, kKeyVectors>(b, block, pairs, key, d, dkeys);
  }
  for (; d + kLanes <= hd; d += kLanes) {
    add_key_gradients<kKeys, 1>(b, block, pairs, key, d, dkeys);
  }
  if (d < hd) add_key_gradients<kKeys, 0>(b, block, pairs, key, d, dkeys);
}

}  // namespace

void sparse_attention_bwd_keys(const SparseAttentionBwd& b, const AttentionBlock& block,
                               const PairsOfKeys& pairs, int64_t begin, int64_t end, float* dkeys) {
  constexpr int kTogether = 4;
  int64_t key = begin;
  for (; key + kTogether <= end; key += kTogether) {
    add_key_gradients_of<kTogether>(b, block, pairs, key, dkeys + (key - begin) * b.fwd.hd);
  }
  for (; key < end; ++key) {
    add_key_gradients_of<1>(b, block, pairs, key, dkeys + (key - begin) * b.fwd.hd);
  }
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
