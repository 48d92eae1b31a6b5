// The arithmetic of vec_math.h and row_ops.h for one thread and for 16 threads of a warp, with the
// same bits: only IEEE operations in the same order. Files that include this are compiled with
// -fmad=false, so a fused multiply-add happens where the source says fmaf.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::cuda {

constexpr int kRowLanes = 16;

// x86's max and min: the second argument when either is NaN.
__device__ inline float max_of(float a, float b) { return a > b ? a : b; }
__device__ inline float min_of(float a, float b) { return a < b ? a : b; }

__device__ inline float exp_of(float x) {
  const float clamped = min_of(max_of(x, -105.0f), 89.0f);
  const float n = rintf(clamped * 1.44269504088896341f);
  float r = fmaf(-n, 0.693359375f, clamped);
  r = fmaf(-n, -2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(r * r, p, r) + 1.0f;
  const int whole = static_cast<int>(n);
  const int half = whole >> 1;
  p = p * __int_as_float((half + 127) << 23);
  p = p * __int_as_float((whole - half + 127) << 23);
  return x != x ? x : p;
}

__device__ inline float log_of(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 16777216.0f : x;
  const int raw = __float_as_int(scaled);
  const int exponent = (raw - 0x3F3504F3) >> 23;
  const float m = __int_as_float(raw - (exponent << 23));
  float e = static_cast<float>(exponent);
  if (tiny) e = e - 24.0f;
  const float t = m - 1.0f;
  const float z = t * t;
  float p = 7.0376836292e-2f;
  p = fmaf(p, t, -1.1514610310e-1f);
  p = fmaf(p, t, 1.1676998740e-1f);
  p = fmaf(p, t, -1.2420140846e-1f);
  p = fmaf(p, t, 1.4249322787e-1f);
  p = fmaf(p, t, -1.6668057665e-1f);
  p = fmaf(p, t, 2.0000714765e-1f);
  p = fmaf(p, t, -2.4999993993e-1f);
  p = fmaf(p, t, 3.3333331174e-1f);
  float y = (p * t) * z;
  y = fmaf(e, -2.12194440e-4f, y);
  y = fmaf(-0.5f, z, y);
  float result = fmaf(e, 0.693359375f, t + y);
  if (x == __int_as_float(0x7F800000)) result = x;
  if (x == 0.0f) result = __int_as_float(static_cast<int>(0xFF800000u));
  if (x < 0.0f) result = __int_as_float(0x7FC00000);
  return x != x ? x : result;
}

__device__ inline float log1p_of(float x) {
  const float u = 1.0f + x;
  const float lost = x - (u - 1.0f);
  return log_of(u) + lost / u;
}
__device__ inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(0.0f - x)); }
__device__ inline float softplus_of(float x) {
  return max_of(x, 0.0f) + log1p_of(exp_of(0.0f - fabsf(x)));
}

__device__ inline void sin_cos_of(double x, double* sine, double* cosine) {
  const double n = rint(x * 0.63661977236758134308);
  double r = fma(-n, 1.57079632679489655800e+00, x);
  r = fma(-n, 6.12323399573676603587e-17, r);
  r = fma(-n, -1.4973849048591833e-33, r);
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = fma(s, z, -2.50507602534068634195e-08);
  s = fma(s, z, 2.75573137070700676789e-06);
  s = fma(s, z, -1.98412698298579493134e-04);
  s = fma(s, z, 8.33333333332248946124e-03);
  s = fma(s, z, -1.66666666666666324348e-01);
  s = fma(s * z, r, r);
  double c = -1.13596475577881948265e-11;
  c = fma(c, z, 2.08757232129817482790e-09);
  c = fma(c, z, -2.75573143513906633035e-07);
  c = fma(c, z, 2.48015872894767294178e-05);
  c = fma(c, z, -1.38888888888741095749e-03);
  c = fma(c, z, 4.16666666666666019037e-02);
  c = fma(c * z, z, fma(-0.5, z, 1.0));
  const long long quadrant = static_cast<long long>(n) & 3;
  *sine = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
  *cosine = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
}

/// x rounded to BF16, as fp32.
__device__ inline float round_bf16_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t up = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return __uint_as_float((x != x ? bits | 0x00400000u : up) & 0xFFFF0000u);
}

// ---- 16 threads (half a warp) that share a row ----

__device__ inline int row_lane() { return static_cast<int>(threadIdx.x & 15u); }
/// The half warp of this thread, for __shfl_*_sync: halves may go different ways.
__device__ inline unsigned row_mask() { return (threadIdx.x & 16u) != 0 ? 0xFFFF0000u : 0xFFFFu; }

/// The fixed tree over the 16 lanes: i + 8, then + 4, + 2, + 1; the result in all of them.
__device__ inline float reduce_lanes(float a) {
  const unsigned mask = row_mask();
  a = a + __shfl_down_sync(mask, a, 8, 16);
  a = a + __shfl_down_sync(mask, a, 4, 16);
  a = a + __shfl_down_sync(mask, a, 2, 16);
  a = a + __shfl_down_sync(mask, a, 1, 16);
  return __shfl_sync(mask, a, 0, 16);
}

/// The largest of the 16 lanes, in all of them.
__device__ inline float max_lanes(float a) {
  const unsigned mask = row_mask();
  for (int step = 8; step > 0; step /= 2) a = max_of(__shfl_xor_sync(mask, a, step, 16), a);
  return a;
}

/// Lane i takes x(i), x(i + 16), ...: the sum of x(i) * y(i) for i < n.
template <typename X, typename Y>
__device__ inline float dot_lanes_of(X&& x, Y&& y, int64_t n) {
  float acc = 0.0f;
  for (int64_t i = row_lane(); i < n; i += kRowLanes) acc = fmaf(x(i), y(i), acc);
  return reduce_lanes(acc);
}
__device__ inline float dot_lanes(const float* x, const float* y, int64_t n) {
  float acc = 0.0f;
#pragma unroll 4
  for (int64_t i = row_lane(); i < n; i += kRowLanes) acc = fmaf(x[i], y[i], acc);
  return reduce_lanes(acc);
}

}  // namespace fathom::cuda
