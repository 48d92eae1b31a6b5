// The two builds of embedding_cpu.cc. The forward is a copy and needs none.
#pragma once

#include <cstdint>

namespace fathom {

#define FATHOM_DECLARE_EMBEDDING(isa)                                                     \
  namespace isa {                                                                         \
  /* Columns [begin, end) of every token's gradient. */                                   \
  void embedding_bwd_columns(const float* dout, const int32_t* ids, int64_t T, int64_t D, \
                             int64_t copies, float* dtable, int64_t begin, int64_t end);  \
  }
FATHOM_DECLARE_EMBEDDING(avx2)
FATHOM_DECLARE_EMBEDDING(avx512)
#undef FATHOM_DECLARE_EMBEDDING

}  // namespace fathom
