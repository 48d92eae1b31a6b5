#include "fathom/observe/metrics.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/observe/tensorboard.h"

namespace fathom {
namespace {

/// Lines of metrics.jsonl with a step below first_step. A last line cut by a crash is dropped.
std::string kept_lines(const std::string& path, int64_t first_step,
                       std::vector<std::pair<int64_t, MetricList>>* kept) {
  if (!file_exists(path)) return "";
  const std::string text = read_file(path);
  std::string out;
  int64_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const Json json = parse_json(line, str_cat(path, " line ", ++line_number));
    FATHOM_CHECK(json.is_object() && json.contains("step") && json["step"].is_number_integer(),
                 path, " line ", line_number, ": no step");
    const int64_t step = json["step"].get<int64_t>();
    if (step >= first_step) continue;
    out += line + "\n";
    MetricList metrics;
    for (const auto& [name, value] : json.items()) {
      if (name != "step" && value.is_number()) metrics.emplace_back(name, value.get<double>());
    }
    kept->emplace_back(step, std::move(metrics));
  }
  return out;
}

}  // namespace

struct MetricsWriter::Impl {
  std::FILE* jsonl = nullptr;
  std::unique_ptr<TensorBoardWriter> tensorboard;
  ~Impl() {
    if (jsonl != nullptr) std::fclose(jsonl);
  }
};

MetricsWriter::MetricsWriter(const std::string& directory, int64_t first_step)
    : impl_(std::make_unique<Impl>()) {
  make_directories(directory);
  const std::string path = join_path(directory, "metrics.jsonl");
  std::vector<std::pair<int64_t, MetricList>> kept;
  write_file_atomic(path, kept_lines(path, first_step, &kept));
  impl_->jsonl = std::fopen(path.c_str(), "ae");
  FATHOM_CHECK(impl_->jsonl != nullptr, "cannot open ", path);

  // The event file is made anew from the kept lines: each step appears once, whatever was written
  // before the interruption.
  const std::string events = join_path(directory, "tensorboard");
  make_directories(events);
  for (const std::string& name : list_directory(events)) {
    if (name.starts_with("events.out.tfevents.")) ::unlink(join_path(events, name).c_str());
  }
  impl_->tensorboard = std::make_unique<TensorBoardWriter>(events);
  for (const auto& [step, metrics] : kept) impl_->tensorboard->write(step, metrics);
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::write(int64_t step, const MetricList& metrics) {
  Json line = {{"step", step}};
  for (const auto& [name, value] : metrics) {
    if (std::isfinite(value)) {
      line[name] = value;
    } else {
      line[name] = nullptr;
    }
  }
  const std::string text = line.dump() + "\n";
  const bool written = std::fwrite(text.data(), 1, text.size(), impl_->jsonl) == text.size() &&
                       std::fflush(impl_->jsonl) == 0;
  FATHOM_CHECK(written, "cannot write metrics.jsonl: is the disk full?\n",
               "  fix: free space, then run the same command again: it resumes");
  impl_->tensorboard->write(step, metrics);
}

std::string sparkline(const std::vector<double>& values, double low, double high) {
  static const char* kBlocks[] = {"\u2581", "\u2582", "\u2583", "\u2584",
                                  "\u2585", "\u2586", "\u2587", "\u2588"};
  std::string line;
  for (double v : values) {
    const double scaled = high > low ? (v - low) / (high - low) : 0.0;
    line += kBlocks[std::clamp(static_cast<int>(scaled * 8.0), 0, 7)];
  }
  return line;
}

}  // namespace fathom
