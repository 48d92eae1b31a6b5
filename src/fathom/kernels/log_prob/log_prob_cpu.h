// The two builds of log_prob_cpu.cc.
#pragma once

#include <cstdint>

namespace fathom {

struct SoftmaxStats;  // log_prob.h; of no logits: max = -inf, the sums 0

/// Logits of a block of rows over columns [first_column, first_column + num_columns).
struct LogitBlock {
  float* z;
  int64_t stride;  // floats between rows
  int64_t first_column, num_columns;
  float temperature;
};

/// What the backward pass of a row needs.
struct LogProbRowGrads {
  const int32_t* targets;   // [R]
  const float* lse;         // [R]
  const float* dlog_probs;  // [R]
  const float* entropy;     // [R], with dentropy
  const float* dentropy;    // [R] or null
};

#define FATHOM_DECLARE_LOG_PROB(isa)                                                             \
  namespace isa {                                                                                \
  SoftmaxStats softmax_stats(const float* z, int64_t n, bool with_entropy);                      \
  SoftmaxStats merge_softmax_stats(const SoftmaxStats& a, const SoftmaxStats& b);                \
  float log_sum_exp_of(const SoftmaxStats& s);                                                   \
  float entropy_of(const SoftmaxStats& s);                                                       \
  /* z /= temperature for one row of the block. */                                               \
  void divide_by_temperature(float* z, int64_t n, float temperature);                            \
  /* Replaces the logits of row `row` (counted in the block; `r` in the grads) by d(loss)/dz. */ \
  void logit_gradient_row(const LogitBlock& block, const LogProbRowGrads& g, int64_t row,        \
                          int64_t r);                                                            \
  }
FATHOM_DECLARE_LOG_PROB(avx2)
FATHOM_DECLARE_LOG_PROB(avx512)
#undef FATHOM_DECLARE_LOG_PROB

}  // namespace fathom
