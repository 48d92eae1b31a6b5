// A line that shows how far a long piece of work is, rewritten in place on a terminal. Elsewhere it
// prints nothing: the lines that the work logs are enough there.
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

class Progress {
 public:
  /// @param what "rollout", "evaluation"; @param total number of items, > 0.
  Progress(std::string what, int64_t total);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Redraws at most ten times a second.
  void update(int64_t done);

 private:
  std::string what_;
  int64_t total_;
  bool is_terminal_;
  bool drawn_ = false;
  double last_drawn_ = 0.0;
};

/// "rollout  [#########.......]  128/256"
std::string progress_text(const std::string& what, int64_t done, int64_t total);

}  // namespace fathom
