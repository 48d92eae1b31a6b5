// Several processes on one conversion, on one machine or many. They share nothing but the directory
// they write into: each knows its part from the plan, says every second that it is alive, and
// leaves its error for the others when it fails. The directory of their messages is made and
// removed by rank 0 alone, so that nobody who comes or goes late brings it back.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fathom/checkpoint/stream_files.h"

namespace fathom {

/// Which of the processes this one is.
struct ProcessPlace {
  int64_t rank = 0, size = 1;
  /// Equal for all processes of one job, other for other jobs, as far as the launcher tells.
  std::string job;
};

class SpmdGroup {
 public:
  /// @param directory for the processes' messages. Rank 0 makes it, and has made sure before that
  /// no other job is at work; the others wait for it. Removed by finish().
  /// @param patience_seconds how long a process may be silent before the others give up.
  /// Errors: UserError when messages cannot be written.
  SpmdGroup(std::string directory, ProcessPlace place, double patience_seconds = 120);
  ~SpmdGroup();
  SpmdGroup(const SpmdGroup&) = delete;
  SpmdGroup& operator=(const SpmdGroup&) = delete;

  const ProcessPlace& place() const { return place_; }
  /// Rank 0: everything is in order, the others of this job may begin.
  void open_gate();
  /// Others: whether it is.
  bool is_gate_open() const;
  /// Bytes that this process has done, for the others' progress lines.
  void report(int64_t num_bytes) { bytes_.store(num_bytes); }
  int64_t bytes_of_others() const { return bytes_of_others_.load(); }
  /// Errors: UserError when another process has failed or fallen silent. Cheap.
  void check_others() const;
  /// Waits until `is_done`; check_others() meanwhile.
  template <typename Predicate>
  void wait_until(Predicate&& is_done) const {
    while (!is_done()) {
      check_others();
      pause();
    }
  }
  /// Leaves the message for the others.
  void fail(const std::string& message);
  /// Rank 0, at the end: removes the directory. Killed on the way, it leaves what the next
  /// PendingDirectory of that place removes.
  void finish();

 private:
  static void pause();
  void beat();  // the thread
  void look_at_others();
  std::string file(const char* what, int64_t rank) const;

  std::string directory_;
  ProcessPlace place_;
  double patience_seconds_;
  int64_t started_ = 0;  // by the file system's clock
  std::atomic<int64_t> bytes_{0}, bytes_of_others_{0};
  std::atomic<bool> has_problem_{false}, is_stopping_{false};
  std::string problem_;  // written before has_problem_
  struct Peer {
    std::string last;
    double heard_at = 0;
  };
  std::vector<Peer> peers_;
  std::thread thread_;
};

}  // namespace fathom
