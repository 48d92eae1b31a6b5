#include "fathom/numerics/vec_arrays.h"

#include "fathom/numerics/vec_arrays_cpu.h"

namespace fathom {

#define FATHOM_DEFINE_ARRAY(name)                                         \
  void name(CpuIsa isa, int64_t n, const float* x, float* y) {            \
    isa == CpuIsa::kAvx512 ? avx512::name(n, x, y) : avx2::name(n, x, y); \
  }
FATHOM_DEFINE_ARRAY(exp_array)
FATHOM_DEFINE_ARRAY(log_array)
FATHOM_DEFINE_ARRAY(log1p_array)
FATHOM_DEFINE_ARRAY(sigmoid_array)
FATHOM_DEFINE_ARRAY(softplus_array)
#undef FATHOM_DEFINE_ARRAY

void sin_cos_array(CpuIsa isa, int64_t n, const double* x, double* sine, double* cosine) {
  isa == CpuIsa::kAvx512 ? avx512::sin_cos_array(n, x, sine, cosine)
                         : avx2::sin_cos_array(n, x, sine, cosine);
}

}  // namespace fathom
