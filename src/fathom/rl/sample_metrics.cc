#include "fathom/rl/sample_metrics.h"

#include <zlib.h>

#include <algorithm>

namespace fathom {
namespace {

constexpr size_t kRepetitionBytes = 10000;
constexpr double kRepetitionRatio = 10.0;

/// Response tokens that count for the loss.
double effective_length(const Sample& s) {
  if (s.remove_sample) return 0.0;
  if (s.loss_mask.empty()) return static_cast<double>(s.response_length);
  double n = 0.0;
  for (uint8_t m : s.loss_mask) n += m;
  return n;
}

}  // namespace

void add_distribution(const std::string& prefix, std::vector<double> values, MetricList* metrics) {
  if (values.empty()) values.push_back(0.0);
  std::sort(values.begin(), values.end());
  double sum = 0.0;
  for (double v : values) sum += v;
  const size_t n = values.size();
  metrics->emplace_back(prefix + "/mean", sum / static_cast<double>(n));
  metrics->emplace_back(prefix + "/median", (values[(n - 1) / 2] + values[n / 2]) / 2.0);
  metrics->emplace_back(prefix + "/max", values.back());
  metrics->emplace_back(prefix + "/min", values.front());
}

void add_sample_metrics(const std::string& prefix, const std::vector<const Sample*>& samples,
                        MetricList* metrics) {
  std::vector<double> lengths;
  double truncated = 0.0, repetitive = 0.0;
  for (const Sample* s : samples) {
    lengths.push_back(effective_length(*s));
    truncated += s->status == SampleStatus::kTruncated;
    repetitive += is_repetitive(s->response);
  }
  const double n = static_cast<double>(std::max<size_t>(1, samples.size()));
  add_distribution(prefix + "/response_len", lengths, metrics);
  metrics->emplace_back(prefix + "/repetition_frac", repetitive / n);
  metrics->emplace_back(prefix + "/truncated_ratio", truncated / n);
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (n - c < k) return 1.0;
  double all_wrong = 1.0;
  for (int64_t i = n - c + 1; i <= n; ++i) {
    all_wrong *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  }
  return 1.0 - all_wrong;
}

bool is_repetitive(const std::string& response) {
  if (response.size() <= kRepetitionBytes) return false;
  const auto* tail =
      reinterpret_cast<const Bytef*>(response.data() + response.size() - kRepetitionBytes);
  uLongf packed_size = compressBound(kRepetitionBytes);
  std::vector<Bytef> packed(packed_size);
  if (compress2(packed.data(), &packed_size, tail, kRepetitionBytes, 9) != Z_OK) return false;
  return static_cast<double>(kRepetitionBytes) >
         kRepetitionRatio * static_cast<double>(packed_size);
}

}  // namespace fathom
