// The two builds of linear_cpu.cc: tiles of the three products, called by linear.cc.
#pragma once

#include <cstdint>

#include "fathom/kernels/linear/linear.h"

namespace fathom {

/// Tokens that one call of linear_bwd_input_tokens turns at a time.
constexpr int64_t kLinearTokenBlock = 32;

#define FATHOM_DECLARE_LINEAR(isa)                                                              \
  namespace isa {                                                                               \
  /* y of tokens [t_begin, t_end) and panels [panel_begin, panel_end). */                       \
  void linear_fwd_tile(const LinearFwd& p, int64_t t_begin, int64_t t_end, int64_t panel_begin, \
                       int64_t panel_end);                                                      \
  /* dx of tokens [t_begin, t_end), at most kLinearTokenBlock of them.                          \
     scratch: (N + K) * kLinearTokenBlock floats. */                                            \
  void linear_bwd_input_tokens(const LinearBwdInput& p, int64_t t_begin, int64_t t_end,         \
                               float* scratch);                                                 \
  /* dW of panels [panel_begin, panel_end), columns [k_begin, k_end), all tokens in order. */   \
  void linear_bwd_weight_tile(const LinearBwdWeight& p, int64_t panel_begin, int64_t panel_end, \
                              int64_t k_begin, int64_t k_end);                                  \
  }
FATHOM_DECLARE_LINEAR(avx2)
FATHOM_DECLARE_LINEAR(avx512)
#undef FATHOM_DECLARE_LINEAR

}  // namespace fathom
