// The two builds of rope_cpu.cc, on positions or rows [begin, end).
#pragma once

#include <cstdint>

#include "fathom/kernels/rope/rope.h"

namespace fathom {

#define FATHOM_DECLARE_ROPE(isa)                                                       \
  namespace isa {                                                                      \
  void rope_table_rows(const int64_t* positions, const float* frequencies,             \
                       int64_t num_frequencies, float* cos, float* sin, int64_t begin, \
                       int64_t end);                                                   \
  void rope_apply_rows(const RopeApply& p, int64_t begin, int64_t end);                \
  }
FATHOM_DECLARE_ROPE(avx2)
FATHOM_DECLARE_ROPE(avx512)
#undef FATHOM_DECLARE_ROPE

}  // namespace fathom
