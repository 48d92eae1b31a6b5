#include "fathom/kernels/quant/quant_ref.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "fathom/numerics/formats.h"

namespace fathom {

double bf16_ref(double x) {
  if (x == 0) return x;
  int exponent;
  const double fraction = std::frexp(x, &exponent);  // |fraction| in [1/2, 1)
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

double e4m3_ref(double x) {
  int best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    const double d = std::fabs(std::fabs(x) - static_cast<double>(kE4m3Values[code]));
    const double of_best = std::fabs(std::fabs(x) - static_cast<double>(kE4m3Values[best]));
    if (d < of_best || (d == of_best && code % 2 == 0)) best = code;
  }
  return std::copysign(static_cast<double>(kE4m3Values[best]), x);
}

double fp8_scale_ref(float amax, float floor) {
  const float ratio = std::max(amax, floor) * (1.0f / 448.0f);
  double scale = 0x1p-149;
  while (scale < static_cast<double>(ratio)) scale *= 2;
  return scale;
}

std::vector<double> simulate_fp8_ref(const std::vector<float>& row, int64_t block) {
  std::vector<double> out(row.size());
  const auto n = static_cast<int64_t>(row.size());
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(n, begin + block);
    float amax = 0;
    for (int64_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(row[i]));
    const double scale = fp8_scale_ref(amax, 1e-4f);
    for (int64_t i = begin; i < end; ++i) {
      out[i] = e4m3_ref(static_cast<double>(row[i]) / scale) * scale;
    }
  }
  return out;
}

std::vector<double> hadamard_ref(const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (size_t j = 0; j < x.size(); ++j) {
    for (size_t i = 0; i < x.size(); ++i) {
      y[j] += std::popcount(i & j) % 2 == 0 ? x[i] : -x[i];
    }
    y[j] /= std::sqrt(static_cast<double>(x.size()));
  }
  return y;
}

}  // namespace fathom
