// The two builds of swiglu_cpu.cc, on elements or tokens [begin, end).
#pragma once

#include <cstdint>

namespace fathom {

/// Arguments of moe_combine_*, as in swiglu.h.
struct MoeCombine {
  int64_t K, D;
  const float* rows;
  const int32_t* slot_row;
  const float* weights;
};

#define FATHOM_DECLARE_SWIGLU(isa)                                                                 \
  namespace isa {                                                                                  \
  void swiglu_fwd_elements(float limit, const float* g, const float* u, float* a, int64_t begin,   \
                           int64_t end);                                                           \
  void swiglu_bwd_elements(float limit, const float* g, const float* u, const float* da,           \
                           float* dg, float* du, int64_t begin, int64_t end);                      \
  void moe_combine_fwd_tokens(const MoeCombine& c, const float* shared, float* out, int64_t begin, \
                              int64_t end);                                                        \
  void moe_combine_bwd_tokens(const MoeCombine& c, const float* dout, float* drows,                \
                              float* dweights, int64_t begin, int64_t end);                        \
  }
FATHOM_DECLARE_SWIGLU(avx2)
FATHOM_DECLARE_SWIGLU(avx512)
#undef FATHOM_DECLARE_SWIGLU

}  // namespace fathom
