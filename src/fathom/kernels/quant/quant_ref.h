// The roundings of quant.h in fp64, from the definitions of the formats.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// The nearest number of eight significant bits, ties to even; for normal results.
double bf16_ref(double x);

/// The nearest of all finite E4M3 values, ties to the even code; beyond +-448 is +-448.
double e4m3_ref(double x);

/// The least power of two that is at least fp32(amax * fp32(1/448)), amax at least `floor`.
double fp8_scale_ref(float amax, float floor);

/// A row in blocks of `block` through E4M3 with such scales and back, amax at least 1e-4.
std::vector<double> simulate_fp8_ref(const std::vector<float>& row, int64_t block);

/// x H_n / sqrt(n), H_n[i][j] = (-1)^popcount(i & j); not rounded.
std::vector<double> hadamard_ref(const std::vector<double>& x);

}  // namespace fathom
