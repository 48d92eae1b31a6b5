#include "fathom/numerics/scalar_math.h"

#include "fathom/numerics/vec_math.h"

namespace fathom {

float scalar_exp(float x) { return FATHOM_ISA::exp1(x); }
float scalar_log(float x) { return FATHOM_ISA::log1(x); }
void scalar_sin_cos(double x, double* sine, double* cosine) {
  FATHOM_ISA::sin_cos(x, sine, cosine);
}

}  // namespace fathom
