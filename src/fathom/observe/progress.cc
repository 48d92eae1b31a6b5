#include "fathom/observe/progress.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "fathom/base/error.h"

namespace fathom {
namespace {

constexpr int kBarWidth = 30;
constexpr double kSecondsBetweenDraws = 0.1;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string progress_text(const std::string& what, int64_t done, int64_t total) {
  const int64_t filled = total > 0 ? kBarWidth * done / total : 0;
  return str_cat(what, "  [", std::string(static_cast<size_t>(filled), '#'),
                 std::string(static_cast<size_t>(kBarWidth - filled), '.'), "]  ", done, "/",
                 total);
}

Progress::Progress(std::string what, int64_t total)
    : what_(std::move(what)), total_(total), is_terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void Progress::update(int64_t done) {
  if (!is_terminal_ || now_seconds() - last_drawn_ < kSecondsBetweenDraws) return;
  last_drawn_ = now_seconds();
  drawn_ = true;
  std::fprintf(stderr, "\r%s\033[K", progress_text(what_, done, total_).c_str());
}

}  // namespace fathom
