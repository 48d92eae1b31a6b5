// How far a download is: a line that is rewritten on a terminal, elsewhere a line every ten
// seconds.
#pragma once

#include <chrono>
#include <string>

#include "fathom/hub/transfer.h"

namespace fathom {

class TransferReport {
 public:
  explicit TransferReport(std::string what);
  ~TransferReport();  // clears the line
  TransferReport(const TransferReport&) = delete;
  TransferReport& operator=(const TransferReport&) = delete;

  void update(const hub::TransferProgress& progress);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  bool is_terminal_, is_drawn_ = false;
  Clock::time_point start_, last_;
  int64_t first_bytes_ = -1;  // there already when it began
};

/// "org/name  3/7 files, 1.2 of 4.0 GB, 85.1 MB/s, 33 s left"
std::string transfer_text(const std::string& what, const hub::TransferProgress& progress,
                          double bytes_per_s);

}  // namespace fathom
