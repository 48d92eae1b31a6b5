// Lines of a run's log: one event a line, to standard error, flushed at once.
#pragma once

#include <string>

#include "fathom/base/error.h"

namespace fathom {

/// Writes "<text>\n". Safe to call from several threads; lines never interleave.
void log_line(const std::string& text);

/// Adds a copy of every later line to `path` (the run directory's log). Empty path: stop copying.
void log_to_file(const std::string& path);

template <typename... Parts>
void log_info(const Parts&... parts) {
  log_line(str_cat(parts...));
}

template <typename... Parts>
void log_warning(const Parts&... parts) {
  log_line(str_cat("warning: ", parts...));
}

}  // namespace fathom
