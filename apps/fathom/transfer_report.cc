#include "transfer_report.h"

#include <unistd.h>

#include <cstdio>

#include "fathom/base/log.h"

namespace fathom {

std::string transfer_text(const std::string& what, const hub::TransferProgress& progress,
                          double bytes_per_s) {
  char text[160];
  std::snprintf(text, sizeof text, "  %lld/%lld files, %.3f of %.3f GB, %.1f MB/s",
                static_cast<long long>(progress.files_done),
                static_cast<long long>(progress.files_total),
                static_cast<double>(progress.bytes_done) * 1e-9,
                static_cast<double>(progress.bytes_total) * 1e-9, bytes_per_s * 1e-6);
  std::string line = what + text;
  if (bytes_per_s > 0)
    line +=
        str_cat(", ",
                static_cast<int64_t>(
                    static_cast<double>(progress.bytes_total - progress.bytes_done) / bytes_per_s),
                " s left");
  return line;
}

TransferReport::TransferReport(std::string what)
    : what_(std::move(what)),
      is_terminal_(::isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      last_(start_) {}

TransferReport::~TransferReport() {
  if (is_drawn_) std::fputs("\r\033[K", stderr);
}

void TransferReport::update(const hub::TransferProgress& progress) {
  if (first_bytes_ < 0) first_bytes_ = progress.bytes_done;
  const auto now = Clock::now();
  if (now - last_ < std::chrono::milliseconds(is_terminal_ ? 200 : 10'000)) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::string line = transfer_text(
      what_, progress, static_cast<double>(progress.bytes_done - first_bytes_) / seconds);
  if (!is_terminal_) return log_line(line);
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  is_drawn_ = true;
}

}  // namespace fathom
