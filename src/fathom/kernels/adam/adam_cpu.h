// The two builds of adam_cpu.cc, on elements [begin, end).
#pragma once

#include "fathom/kernels/adam/adam.h"

namespace fathom {

#define FATHOM_DECLARE_ADAM(isa)                                                                \
  namespace isa {                                                                               \
  void adam_update_elements(const AdamStep& s, const float* grad, float* w, float* m, float* v, \
                            int64_t begin, int64_t end);                                        \
  }
FATHOM_DECLARE_ADAM(avx2)
FATHOM_DECLARE_ADAM(avx512)
#undef FATHOM_DECLARE_ADAM

}  // namespace fathom
