// Named numbers of one step, and where they are written.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace fathom {

/// In order of insertion: {"train/loss", 0.1}, ...
using MetricList = std::vector<std::pair<std::string, double>>;

class MetricsWriter {
 public:
  /// Writes `directory`/metrics.jsonl and `directory`/tensorboard/events.out.tfevents.*.
  /// Opening cuts both back to steps < `first_step`, so that after a resume every step appears
  /// once. Errors: UserError when the directory cannot be written or metrics.jsonl is damaged.
  MetricsWriter(const std::string& directory, int64_t first_step);
  ~MetricsWriter();

  /// One JSON object a line: {"step": s, name: value, ...}, flushed; non-finite values become null.
  void write(int64_t step, const MetricList& metrics);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A line of block characters, one per value, scaled to [low, high].
std::string sparkline(const std::vector<double>& values, double low, double high);

}  // namespace fathom
