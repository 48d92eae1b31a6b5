#include "fathom/base/log.h"

#include <cstdio>
#include <mutex>

#include "fathom/base/log_screen.h"

namespace fathom {
namespace {

// The log is the one process-wide stream, like standard error itself.
std::mutex log_mutex;
std::FILE* log_file = nullptr;
bool is_on_screen = true;

}  // namespace

void log_line(const std::string& text) {
  std::lock_guard lock(log_mutex);
  if (is_on_screen) std::fprintf(stderr, "%s\n", text.c_str());
  if (log_file != nullptr) {
    std::fprintf(log_file, "%s\n", text.c_str());
    std::fflush(log_file);
  }
}

void log_to_file(const std::string& path) {
  std::lock_guard lock(log_mutex);
  if (log_file != nullptr) std::fclose(log_file);
  log_file = nullptr;
  if (path.empty()) return;
  log_file = std::fopen(path.c_str(), "ae");
  FATHOM_CHECK(log_file != nullptr, "cannot open the log file ", path);
}

void show_log(bool on_screen) {
  std::lock_guard lock(log_mutex);
  is_on_screen = on_screen;
}

}  // namespace fathom
