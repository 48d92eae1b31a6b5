// The two builds of linear_cpu.cc: one rectangle of the result of each product.
#pragma once

#include <cstdint>

#include "fathom/kernels/linear/linear.h"

namespace fathom {

/// Rows and 16-column panels [begin, end) of the result.
struct Rectangle {
  int64_t row_begin, row_end;
  int64_t panel_begin, panel_end;
};

/// The most panels in a rectangle of linear_bwd_weight_rectangle: its copy of dy lies on the stack.
constexpr int64_t kBwdWeightPanels = 16;

#define FATHOM_DECLARE_LINEAR(isa)                                                   \
  namespace isa {                                                                    \
  /* rows: tokens; panels: of N */                                                   \
  void linear_fwd_rectangle(const LinearFwd& p, const Rectangle& part);              \
  /* rows: tokens; panels: of K */                                                   \
  void linear_bwd_input_rectangle(const LinearBwdInput& p, const Rectangle& part);   \
  /* rows: inputs k; panels: of N */                                                 \
  void linear_bwd_weight_rectangle(const LinearBwdWeight& p, const Rectangle& part); \
  }
FATHOM_DECLARE_LINEAR(avx2)
FATHOM_DECLARE_LINEAR(avx512)
#undef FATHOM_DECLARE_LINEAR

}  // namespace fathom
