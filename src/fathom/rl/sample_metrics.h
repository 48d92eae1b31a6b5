// Numbers that describe a set of samples: the rollout/* and eval/* metrics.
#pragma once

#include <string>
#include <vector>

#include "fathom/data/sample.h"
#include "fathom/observe/metrics.h"

namespace fathom {

/// {prefix}/response_len/{mean,median,max,min}, {prefix}/repetition_frac and
/// {prefix}/truncated_ratio. Lengths count the tokens that the loss sees.
void add_sample_metrics(const std::string& prefix, const std::vector<const Sample*>& samples,
                        MetricList* metrics);

/// {prefix}/{mean,median,max,min} of values; all 0 when there are none.
void add_distribution(const std::string& prefix, std::vector<double> values, MetricList* metrics);

/// Unbiased estimate of the chance that one of k answers is right, of n of which c were right:
/// 1 - prod_{i=n-c+1..n} (1 - k/i), 1 when n - c < k.
double pass_at_k(int64_t n, int64_t c, int64_t k);

/// True for a response longer than 10,000 characters whose last 10,000 bytes repeat themselves:
/// they compress more than tenfold.
bool is_repetitive(const std::string& response);

}  // namespace fathom
