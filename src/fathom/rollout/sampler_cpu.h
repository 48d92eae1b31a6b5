// The two builds of sampler_cpu.cc: what sampling does to a whole row of logits.
#pragma once

#include <cstdint>

namespace fathom {

struct RowScan {
  int32_t argmax;   // lowest column of the largest value
  bool all_finite;  // else argmax means nothing
};

/// What the noise of a column is a function of, besides the column.
struct NoiseKey {
  uint64_t seed;
  int64_t position;
};

#define FATHOM_DECLARE_SAMPLER(isa)                                                          \
  namespace isa {                                                                            \
  RowScan scan_row(const float* z, int64_t n);                                               \
  /* out = z / t, IEEE division */                                                           \
  void divide_row(const float* z, float t, int64_t n, float* out);                           \
  /* out = exp(z - lse) */                                                                   \
  void probability_row(const float* z, float lse, int64_t n, float* out);                    \
  /* Column of the largest z + noise, the lower one on a tie. `likely`: any column, best the \
     largest of z: columns that cannot reach it are not drawn. */                            \
  int32_t noisy_argmax(const float* z, int64_t n, const NoiseKey& key, int32_t likely);      \
  /* The same over the given columns. */                                                     \
  int32_t noisy_argmax_of(const float* z, const int32_t* columns, int64_t count,             \
                          const NoiseKey& key);                                              \
  void noise_row(const NoiseKey& key, int64_t first_column, int64_t count, float* out);      \
  /* One Philox4x32-10 block. */                                                             \
  void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);      \
  }
FATHOM_DECLARE_SAMPLER(avx2)
FATHOM_DECLARE_SAMPLER(avx512)
#undef FATHOM_DECLARE_SAMPLER

}  // namespace fathom
