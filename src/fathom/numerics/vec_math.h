// exp, log, log1p, sigmoid and softplus of 16 lanes, and sine and cosine in fp64, without libm:
// only IEEE additions, multiplications, fused multiply-adds, divisions and integer operations, so
// the AVX2 and the AVX-512 build give the same bits.
#pragma once

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

/// e^x, error below 1.5 ulp for results in the normal range. x < -87.33 gives 0 or a subnormal
/// rounded once; -inf gives 0, x > 88.73 gives +inf, NaN gives NaN.
inline F16 exp(F16 x) {
  // x = n·ln2 + r, |r| <= ln2/2; e^r by a polynomial; 2^n in two factors so that n = 128 and
  // subnormal results come out right.
  const F16 clamped = min(max(x, set1(-105.0f)), set1(89.0f));
  const F16 n = round(mul(clamped, set1(1.44269504088896341f)));
  F16 r = fnma(n, set1(0.693359375f), clamped);
  r = fnma(n, set1(-2.12194440e-4f), r);
  F16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(mul(r, r), p, r), set1(1.0f));
  const I16 whole = to_int(n);
  const I16 half = shift_right<1>(whole);
  const I16 rest = sub(whole, half);
  const I16 bias = set1_int(127);
  p = mul(p, from_bits(shift_left<23>(add(half, bias))));
  p = mul(p, from_bits(shift_left<23>(add(rest, bias))));
  return select(is_nan(x), x, p);
}

/// ln x, error below 1.5 ulp. 0 gives -inf, negative gives NaN, +inf gives +inf, NaN gives NaN.
inline F16 log(F16 x) {
  // Subnormals are scaled by 2^24 first.
  const M16 tiny = lt(x, set1(1.17549435e-38f));
  const F16 scaled = select(tiny, mul(x, set1(16777216.0f)), x);
  // x = m·2^e with m in [sqrt(1/2), sqrt(2)).
  const I16 raw = bits(scaled);
  const I16 shifted = sub(raw, set1_int(0x3F3504F3));
  const I16 exponent = shift_right<23>(shifted);
  const F16 m = from_bits(sub(raw, shift_left<23>(exponent)));
  F16 e = to_float(exponent);
  e = select(tiny, sub(e, set1(24.0f)), e);
  const F16 t = sub(m, set1(1.0f));
  const F16 z = mul(t, t);
  F16 p = set1(7.0376836292e-2f);
  p = fma(p, t, set1(-1.1514610310e-1f));
  p = fma(p, t, set1(1.1676998740e-1f));
  p = fma(p, t, set1(-1.2420140846e-1f));
  p = fma(p, t, set1(1.4249322787e-1f));
  p = fma(p, t, set1(-1.6668057665e-1f));
  p = fma(p, t, set1(2.0000714765e-1f));
  p = fma(p, t, set1(-2.4999993993e-1f));
  p = fma(p, t, set1(3.3333331174e-1f));
  F16 y = mul(mul(p, t), z);
  y = fma(e, set1(-2.12194440e-4f), y);
  y = fnma(set1(0.5f), z, y);
  F16 result = fma(e, set1(0.693359375f), add(t, y));
  const F16 infinity = from_bits(set1_int(0x7F800000));
  const F16 nan = from_bits(set1_int(0x7FC00000));
  result = select(eq(x, infinity), x, result);
  result = select(eq(x, zero()), from_bits(set1_int(static_cast<int32_t>(0xFF800000u))), result);
  result = select(lt(x, zero()), nan, result);
  return select(is_nan(x), x, result);
}

/// ln(1 + x) for x >= 0, error below 1.5 ulp: the rounding of 1 + x is put back to first order.
inline F16 log1p(F16 x) {
  const F16 u = add(set1(1.0f), x);
  const F16 lost = sub(x, sub(u, set1(1.0f)));
  return add(log(u), div(lost, u));
}

/// 1 / (1 + e^-x), error below 2.5 ulp; 0 below about -88.7, where e^-x overflows.
inline F16 sigmoid(F16 x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

/// ln(1 + e^x) = max(x, 0) + log1p(e^-|x|), error below 2 ulp
inline F16 softplus(F16 x) {
  const F16 magnitude = from_bits(bit_and(bits(x), set1_int(0x7FFFFFFF)));
  return add(max(x, zero()), log1p(exp(sub(zero(), magnitude))));
}

inline float first_lane(F16 a) {
  alignas(64) float lanes[kLanes];
  store(lanes, a);
  return lanes[0];
}

// One value with the bits of a lane.
inline float exp1(float x) { return first_lane(exp(set1(x))); }
inline float log1(float x) { return first_lane(log(set1(x))); }
inline float log1p1(float x) { return first_lane(log1p(set1(x))); }
inline float sigmoid1(float x) { return first_lane(sigmoid(set1(x))); }
inline float softplus1(float x) { return first_lane(softplus(set1(x))); }

/// Sine and cosine in fp64, absolute error below 1e-15 for |x| < 2^21: Cody-Waite reduction by pi/2
/// in three parts, then polynomials on [-pi/4, pi/4].
inline void sin_cos(double x, double* sine, double* cosine) {
  const double n = __builtin_rint(x * 0.63661977236758134308);
  double r = __builtin_fma(-n, 1.57079632679489655800e+00, x);
  r = __builtin_fma(-n, 6.12323399573676603587e-17, r);
  r = __builtin_fma(-n, -1.4973849048591833e-33, r);
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = __builtin_fma(s, z, -2.50507602534068634195e-08);
  s = __builtin_fma(s, z, 2.75573137070700676789e-06);
  s = __builtin_fma(s, z, -1.98412698298579493134e-04);
  s = __builtin_fma(s, z, 8.33333333332248946124e-03);
  s = __builtin_fma(s, z, -1.66666666666666324348e-01);
  s = __builtin_fma(s * z, r, r);
  double c = -1.13596475577881948265e-11;
  c = __builtin_fma(c, z, 2.08757232129817482790e-09);
  c = __builtin_fma(c, z, -2.75573143513906633035e-07);
  c = __builtin_fma(c, z, 2.48015872894767294178e-05);
  c = __builtin_fma(c, z, -1.38888888888741095749e-03);
  c = __builtin_fma(c, z, 4.16666666666666019037e-02);
  c = __builtin_fma(c * z, z, __builtin_fma(-0.5, z, 1.0));
  const int64_t quadrant = static_cast<int64_t>(n) & 3;
  *sine = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
  *cosine = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
}

}  // namespace FATHOM_ISA
}  // namespace fathom
