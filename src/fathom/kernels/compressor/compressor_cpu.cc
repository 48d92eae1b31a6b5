#include "fathom/kernels/compressor/compressor_cpu.h"

#include "fathom/numerics/vec_math.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

/// Softmax pooling of 16 channels so far: largest gate, sum of weights, weighted sum of values.
struct Pool {
  F16 m, l, a;
};

inline Pool empty_pool() { return {set1(-__builtin_inff()), zero(), zero()}; }

inline Pool load_pool(const float* state, int64_t c, int64_t n) {
  return {load_first(state, n), load_first(state + c, n), load_first(state + 2 * c, n)};
}
inline void store_pool(float* state, const Pool& pool, int64_t c, int64_t n) {
  store_first(state, pool.m, n);
  store_first(state + c, pool.l, n);
  store_first(state + 2 * c, pool.a, n);
}

/// One row. r = exp(m - m') and w = exp(g - m'): whichever of m and g is m' has exp(0) = 1, the
/// other exp(-|m - g|). A NaN gate makes all three NaN.
inline void take(Pool& pool, F16 v, F16 g) {
  const F16 difference = sub(pool.m, g);
  const F16 one = set1(1.0f);
  const F16 decay = exp(from_bits(bit_or(bits(difference), set1_int(INT32_MIN))));  // exp(-|m - g|)
  const M16 larger = lt(pool.m, g);
  const F16 r = select(larger, decay, one), w = select(larger, one, decay);
  pool.m = max(pool.m, g);
  pool.l = fma(pool.l, r, w);
  pool.a = fma(pool.a, r, mul(w, v));
}

/// Rows [begin, end) of value and gate at column `at` of rows of `row` floats.
template <typename Params>
inline void take_rows(Pool& pool, const Params& p, int64_t begin, int64_t end, int64_t at,
                      int64_t n) {
  const int64_t row = p.coff * p.c;
  for (int64_t t = begin; t < end; ++t) {
    const F16 g =
        add(load_first(p.g + t * row + at, n), load_first(p.ape + t % p.ratio * row + at, n));
    take(pool, load_first(p.v + t * row + at, n), g);
  }
}

}  // namespace

void compressor_fwd_channels(const CompressorFwd& p, int64_t channel, int64_t n) {
  const int64_t row = p.coff * p.c;
  const bool overlap = p.coff == 2;
  float* open_state = p.state + channel;
  float* next_state = open_state + 3 * p.c;
  Pool open = load_pool(open_state, p.c, n);
  Pool next = overlap ? load_pool(next_state, p.c, n) : empty_pool();
  float* entry = p.entries + channel;
  int64_t slot = p.start_pos % p.ratio;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const float* v = p.v + t * row + channel;
    const float* g = p.g + t * row + channel;
    const float* ape = p.ape + slot * row + channel;
    const int64_t own = overlap ? p.c : 0;  // where the channels of the token's own window start
    take(open, load_first(v + own, n), add(load_first(g + own, n), load_first(ape + own, n)));
    if (overlap) take(next, load_first(v, n), add(load_first(g, n), load_first(ape, n)));
    if (++slot == p.ratio) {
      slot = 0;
      store_first(entry, div(open.a, open.l), n);
      entry += p.c;
      open = next;
      next = empty_pool();
    }
  }
  store_pool(open_state, open, p.c, n);
  if (overlap) store_pool(next_state, next, p.c, n);
}

void compressor_bwd_entry(const CompressorBwd& p, int64_t entry, int64_t channel, int64_t n) {
  const int64_t row = p.coff * p.c;
  const bool overlap = p.coff == 2;
  const int64_t own_begin = entry * p.ratio, own_end = own_begin + p.ratio;
  const int64_t before = overlap && entry > 0 ? own_begin - p.ratio : own_begin;
  const int64_t own_column = channel + (overlap ? p.c : 0);
  Pool pool = empty_pool();
  take_rows(pool, p, before, own_begin, channel, n);
  take_rows(pool, p, own_begin, own_end, own_column, n);
  const F16 e = div(pool.a, pool.l);
  const F16 de = load_first(p.dentries + entry * p.c + channel, n);
  for (int64_t t = before; t < own_end; ++t) {
    const int64_t column = t < own_begin ? channel : own_column;
    const int64_t at = t * row + column;
    const F16 g = add(load_first(p.g + at, n), load_first(p.ape + t % p.ratio * row + column, n));
    const F16 weight = div(exp(sub(g, pool.m)), pool.l);
    const F16 dv = mul(weight, de);
    store_first(p.dv + at, dv, n);
    store_first(p.dg + at, mul(dv, sub(load_first(p.v + at, n), e)), n);
  }
}

void compressor_bwd_ape(const CompressorBwd& p, int64_t column, int64_t n) {
  const int64_t row = p.coff * p.c;
  for (int64_t slot = 0; slot < p.ratio; ++slot) {
    float* dape = p.dape + slot * row + column;
    F16 acc = load_first(dape, n);
    for (int64_t t = slot; t < p.num_tokens; t += p.ratio) {
      acc = add(acc, load_first(p.dg + t * row + column, n));
    }
    store_first(dape, acc, n);
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
