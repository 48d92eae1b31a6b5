// One value at a time with the bits of the vector functions (vec_math.h), for code outside kernels.
#pragma once

namespace fathom {

float scalar_exp(float x);
float scalar_log(float x);
/// fp64, absolute error below 1e-15 for |x| < 2^21.
void scalar_sin_cos(double x, double* sine, double* cosine);

}  // namespace fathom
