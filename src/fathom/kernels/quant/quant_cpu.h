// The two builds of quant_cpu.cc.
#pragma once

#include <cstdint>

#include "fathom/kernels/quant/entry_format.h"
#include "fathom/kernels/quant/quant.h"

namespace fathom {

#define FATHOM_DECLARE_QUANT(isa)                                                        \
  namespace isa {                                                                        \
  void round_bf16_elements(const float* x, float* out, int64_t begin, int64_t end);      \
  void simulate_fp8_row_range(const Fp8Rows& p, int64_t begin, int64_t end);             \
  /* scale: fp32(1 / sqrt(n)). */                                                        \
  void hadamard_row_range(float* x, int64_t n, float scale, int64_t begin, int64_t end); \
  void decode_entry_rows(const EntryFormat& f, const uint8_t* entries, int64_t count,    \
                         float* rows);                                                   \
  }
FATHOM_DECLARE_QUANT(avx2)
FATHOM_DECLARE_QUANT(avx512)
#undef FATHOM_DECLARE_QUANT

}  // namespace fathom
