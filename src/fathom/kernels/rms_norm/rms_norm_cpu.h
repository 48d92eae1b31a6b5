// The two builds of rms_norm_cpu.cc, on rows or columns [begin, end).
#pragma once

#include <cstdint>

#include "fathom/kernels/rms_norm/rms_norm.h"

namespace fathom {

#define FATHOM_DECLARE_RMS_NORM(isa)                                                           \
  namespace isa {                                                                              \
  void rms_norm_fwd_rows(const RmsNormFwd& p, int64_t begin, int64_t end);                     \
  /* rho [num_rows] of the forward. */                                                         \
  void rms_norm_rho_rows(const RmsNormBwd& p, float* rho, int64_t begin, int64_t end);         \
  void rms_norm_dw_columns(const RmsNormBwd& p, const float* rho, int64_t begin, int64_t end); \
  void rms_norm_dx_rows(const RmsNormBwd& p, const float* rho, int64_t begin, int64_t end);    \
  }
FATHOM_DECLARE_RMS_NORM(avx2)
FATHOM_DECLARE_RMS_NORM(avx512)
#undef FATHOM_DECLARE_RMS_NORM

}  // namespace fathom
