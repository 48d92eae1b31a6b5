// Counters, gauges and histograms, and the page that Prometheus reads. Any thread may change them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

/// A number: of a counter, which only grows, or of a gauge.
class MetricValue {
 public:
  void add(double amount);
  void set(double value) { value_ = value; }
  double get() const { return value_; }

 private:
  std::atomic<double> value_ = 0;
};

class MetricHistogram {
 public:
  explicit MetricHistogram(std::vector<double> bounds);
  void observe(double value);
  const std::vector<double>& bounds() const { return bounds_; }
  /// Values at most bounds[i]; the last entry counts all. Cumulative, as Prometheus wants it.
  std::vector<int64_t> cumulative_counts() const;
  double sum() const { return sum_.get(); }

 private:
  std::vector<double> bounds_;  // ascending
  std::unique_ptr<std::atomic<int64_t>[]> counts_;
  MetricValue sum_;
};

class MetricsPage {
 public:
  /// @param labels on every line, behind the metric's own.
  explicit MetricsPage(MetricLabels labels) : labels_(std::move(labels)) {}

  /// References stay good as long as the page. Metrics of one name are added one after the other.
  MetricValue& counter(const std::string& name, const std::string& help, MetricLabels labels = {});
  MetricValue& gauge(const std::string& name, const std::string& help, MetricLabels labels = {});
  MetricHistogram& histogram(const std::string& name, const std::string& help,
                             std::vector<double> bounds, MetricLabels labels = {});

  /// Text exposition format 0.0.4.
  std::string text() const;
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

 private:
  struct Metric {
    std::string name, help, kind;
    MetricLabels labels;
    MetricValue value;
    std::unique_ptr<MetricHistogram> histogram;
  };
  Metric& add(const std::string& name, const std::string& help, const char* kind,
              MetricLabels labels);

  MetricLabels labels_;
  mutable std::mutex mutex_;
  std::deque<Metric> metrics_;
};

/// 1, 2, 5, 10, ... times `first`, `count` of them.
std::vector<double> one_two_five(double first, int count);

}  // namespace fathom
