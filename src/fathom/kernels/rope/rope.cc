#include "fathom/kernels/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "fathom/base/error.h"
#include "fathom/kernels/rope/rope_cpu.h"
#include "fathom/kernels/rope/rope_cuda.h"

namespace fathom {

std::vector<float> rope_frequencies(int64_t rope_dim, double base, const RopeScaling& scaling) {
  FATHOM_CHECK(rope_dim > 0 && rope_dim % 2 == 0, "rope: the rotary part of a head has ", rope_dim,
               " channels, but must have a positive even number");
  FATHOM_CHECK(base > 1, "rope: theta is ", base, ", but must be greater than 1");
  const double dims = static_cast<double>(rope_dim);
  const bool scaled = scaling.factor != 1.0;
  double low = 0, high = 0;
  if (scaled) {
    FATHOM_CHECK(scaling.factor > 0, "rope: the YaRN factor is ", scaling.factor,
                 ", but must be positive");
    FATHOM_CHECK(scaling.original_max_position_embeddings > 0 && scaling.beta_fast > 0 &&
                     scaling.beta_slow > 0,
                 "rope: YaRN needs positive original_max_position_embeddings, beta_fast and "
                 "beta_slow, got ",
                 scaling.original_max_position_embeddings, ", ", scaling.beta_fast, " and ",
                 scaling.beta_slow);
    const auto dim = [&](double num_rotations) {
      const double original = static_cast<double>(scaling.original_max_position_embeddings);
      return dims * std::log(original / (2 * std::numbers::pi * num_rotations)) /
             (2 * std::log(base));
    };
    low = std::max(std::floor(dim(scaling.beta_fast)), 0.0);
    high = std::min(std::ceil(dim(scaling.beta_slow)), dims - 1);
    if (low == high) high += 0.001;
  }
  std::vector<float> frequencies;
  for (int64_t i = 0; i < rope_dim / 2; ++i) {
    const double index = static_cast<double>(i);
    double f = std::pow(base, -2 * index / dims);
    if (scaled) {
      const double ramp = std::clamp((index - low) / (high - low), 0.0, 1.0);
      f = f / scaling.factor * ramp + f * (1 - ramp);
    }
    frequencies.push_back(static_cast<float>(f));
  }
  return frequencies;
}

void rope_table(const ExecContext& ctx, const int64_t* positions, int64_t num_positions,
                const float* frequencies, int64_t num_frequencies, float* cos, float* sin) {
  FATHOM_ASSERT(num_frequencies > 0, "num_frequencies = ", num_frequencies);
  FATHOM_DEVICE_DISPATCH(ctx, rope_table, positions, num_positions, frequencies, num_frequencies,
                         cos, sin);
  const int64_t grain = std::max<int64_t>(1, 2048 / num_frequencies);
  ctx.threads->parallel_for(num_positions, grain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, rope_table_rows, positions, frequencies, num_frequencies, cos, sin,
                        begin, end);
  });
}

void rope_apply(const ExecContext& ctx, const RopeApply& p) {
  FATHOM_ASSERT(p.rope_dim > 0 && p.rope_dim % 2 == 0 && p.rope_dim <= p.head_dim,
                "rope_dim = ", p.rope_dim, ", head_dim = ", p.head_dim);
  FATHOM_DEVICE_DISPATCH(ctx, rope_apply, p);
  const int64_t grain =
      std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.num_heads * p.rope_dim));
  ctx.threads->parallel_for(p.num_rows, grain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, rope_apply_rows, p, begin, end);
  });
}

}  // namespace fathom
