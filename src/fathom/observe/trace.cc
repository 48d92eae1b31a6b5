#include "fathom/observe/trace.h"

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"

namespace fathom {
namespace {

int64_t nanoseconds(Trace::Clock::duration d) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(d).count();
}

double microseconds(int64_t ns) { return static_cast<double>(ns) * 1e-3; }

}  // namespace

Trace::Trace(int rank) : rank_(rank), origin_(Clock::now()) {}

void Trace::add(std::string_view category, std::string_view name, Clock::time_point begin,
                Clock::time_point end, int64_t num_bytes) {
  const std::lock_guard lock(mutex_);
  spans_.push_back({std::string(category), std::string(name), nanoseconds(begin - origin_),
                    nanoseconds(end - origin_), num_bytes});
}

double Trace::seconds(std::string_view category) const {
  const std::lock_guard lock(mutex_);
  int64_t total = 0;
  for (const Span& s : spans_) {
    if (s.category == category) total += s.end_ns - s.begin_ns;
  }
  return static_cast<double>(total) * 1e-9;
}

double Trace::elapsed_seconds() const {
  return static_cast<double>(nanoseconds(Clock::now() - origin_)) * 1e-9;
}

std::string Trace::events() const {
  const std::lock_guard lock(mutex_);
  // A process per rank, a track per category.
  std::vector<std::string> tracks;
  std::string text = Json{{"name", "process_name"},
                          {"ph", "M"},
                          {"pid", rank_},
                          {"args", {{"name", str_cat("rank ", rank_)}}}}
                         .dump();
  std::string events;
  for (const Span& s : spans_) {
    size_t track = 0;
    while (track < tracks.size() && tracks[track] != s.category) ++track;
    if (track == tracks.size()) {
      tracks.push_back(s.category);
      text += ",\n" + Json{{"name", "thread_name"},
                           {"ph", "M"},
                           {"pid", rank_},
                           {"tid", track},
                           {"args", {{"name", s.category}}}}
                          .dump();
    }
    Json event = {{"name", s.name},
                  {"cat", s.category},
                  {"ph", "X"},
                  {"pid", rank_},
                  {"tid", track},
                  {"ts", microseconds(s.begin_ns)},
                  {"dur", microseconds(s.end_ns - s.begin_ns)}};
    if (s.num_bytes >= 0) event["args"] = {{"bytes", s.num_bytes}};
    events += ",\n" + event.dump();
  }
  return text + events;
}

void write_trace(const std::string& path, const std::vector<std::string>& events_of_ranks) {
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  for (size_t i = 0; i < events_of_ranks.size(); ++i) {
    text += (i == 0 ? "" : ",\n") + events_of_ranks[i];
  }
  write_file_atomic(path, text + "\n]}\n");
}

}  // namespace fathom
