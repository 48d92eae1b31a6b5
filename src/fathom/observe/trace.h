// Where the time of several ranks goes: spans of named work and of communication, in the JSON that
// Perfetto and chrome://tracing open.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// The spans of one rank. May be added to from any thread.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  /// Times count from now: ranks that should stand side by side make theirs behind a barrier.
  explicit Trace(int rank);

  /// @param category groups spans in sums and colours: "phase", "communication".
  /// @param num_bytes sent, shown with the span; negative: not shown.
  void add(std::string_view category, std::string_view name, Clock::time_point begin,
           Clock::time_point end, int64_t num_bytes = -1);

  /// Sum of the spans of a category.
  double seconds(std::string_view category) const;
  /// Since the trace was made.
  double elapsed_seconds() const;

  /// Events of the trace format, separated by commas: what write_trace() takes.
  std::string events() const;

 private:
  struct Span {
    std::string category, name;
    int64_t begin_ns, end_ns, num_bytes;
  };
  int rank_;
  Clock::time_point origin_;
  mutable std::mutex mutex_;
  std::vector<Span> spans_;
};

/// Adds the time of its scope. Does nothing without a trace.
class TraceSpan {
 public:
  TraceSpan(Trace* trace, std::string_view category, std::string_view name)
      : trace_(trace), category_(category), name_(name), begin_(Trace::Clock::now()) {}
  ~TraceSpan() {
    if (trace_ != nullptr) trace_->add(category_, name_, begin_, Trace::Clock::now());
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  Trace* trace_;
  std::string_view category_, name_;
  Trace::Clock::time_point begin_;
};

/// Writes the events of all ranks into one file, whole or not at all.
/// Errors: UserError when it cannot be written.
void write_trace(const std::string& path, const std::vector<std::string>& events_of_ranks);

}  // namespace fathom
