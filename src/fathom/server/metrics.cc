#include "fathom/server/metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "fathom/base/error.h"

namespace fathom {
namespace {

std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  return std::string(buffer, result.ptr);
}

std::string escaped(const std::string& value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out.push_back('\\');
    if (c == '\n') {
      out += "\\n";
    } else {
      out.push_back(c);
    }
  }
  return out;
}

std::string labels_text(const MetricLabels& own, const MetricLabels& common,
                        const std::string& bound = "") {
  std::string out;
  const auto add = [&](const std::string& name, const std::string& value) {
    out += str_cat(out.empty() ? "{" : ",", name, "=\"", escaped(value), "\"");
  };
  for (const auto& [name, value] : own) add(name, value);
  for (const auto& [name, value] : common) add(name, value);
  if (!bound.empty()) add("le", bound);
  return out.empty() ? out : out + "}";
}

}  // namespace

void MetricValue::add(double amount) {
  double old = value_;
  while (!value_.compare_exchange_weak(old, old + amount)) {
  }
}

MetricHistogram::MetricHistogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)),
      counts_(std::make_unique<std::atomic<int64_t>[]>(bounds_.size() + 1)) {
  FATHOM_ASSERT(std::is_sorted(bounds_.begin(), bounds_.end()), "bounds of a histogram");
}

void MetricHistogram::observe(double value) {
  const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  ++counts_[static_cast<size_t>(bound - bounds_.begin())];
  sum_.add(value);
}

std::vector<int64_t> MetricHistogram::cumulative_counts() const {
  std::vector<int64_t> out;
  int64_t total = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) out.push_back(total += counts_[i]);
  return out;
}

MetricsPage::Metric& MetricsPage::add(const std::string& name, const std::string& help,
                                      const char* kind, MetricLabels labels) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Metric& metric = metrics_.emplace_back();
  metric.name = name;
  metric.help = help;
  metric.kind = kind;
  metric.labels = std::move(labels);
  return metric;
}

MetricValue& MetricsPage::counter(const std::string& name, const std::string& help,
                                  MetricLabels labels) {
  return add(name, help, "counter", std::move(labels)).value;
}

MetricValue& MetricsPage::gauge(const std::string& name, const std::string& help,
                                MetricLabels labels) {
  return add(name, help, "gauge", std::move(labels)).value;
}

MetricHistogram& MetricsPage::histogram(const std::string& name, const std::string& help,
                                        std::vector<double> bounds, MetricLabels labels) {
  Metric& metric = add(name, help, "histogram", std::move(labels));
  metric.histogram = std::make_unique<MetricHistogram>(std::move(bounds));
  return *metric.histogram;
}

std::string MetricsPage::text() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string out;
  const std::string* last_name = nullptr;
  for (const Metric& m : metrics_) {
    if (last_name == nullptr || *last_name != m.name) {
      out += str_cat("# HELP ", m.name, " ", m.help, "\n# TYPE ", m.name, " ", m.kind, "\n");
    }
    last_name = &m.name;
    if (m.histogram == nullptr) {
      out += str_cat(m.name, labels_text(m.labels, labels_), " ", number_text(m.value.get()), "\n");
      continue;
    }
    const std::vector<int64_t> counts = m.histogram->cumulative_counts();
    for (size_t i = 0; i < counts.size(); ++i) {
      const bool is_last = i + 1 == counts.size();
      const std::string bound = is_last ? "+Inf" : number_text(m.histogram->bounds()[i]);
      out +=
          str_cat(m.name, "_bucket", labels_text(m.labels, labels_, bound), " ", counts[i], "\n");
    }
    const std::string labels = labels_text(m.labels, labels_);
    out += str_cat(m.name, "_sum", labels, " ", number_text(m.histogram->sum()), "\n", m.name,
                   "_count", labels, " ", counts.back(), "\n");
  }
  return out;
}

std::vector<double> one_two_five(double first, int count) {
  static constexpr double kSteps[] = {1, 2, 5};
  std::vector<double> out;
  double decade = first;
  for (int i = 0; i < count; ++i) {
    out.push_back(decade * kSteps[i % 3]);
    if (i % 3 == 2) decade *= 10;
  }
  return out;
}

}  // namespace fathom
