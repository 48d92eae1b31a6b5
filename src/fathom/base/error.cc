#include "fathom/base/error.h"

namespace fathom {

void throw_internal_error(const char* file, int line, const char* condition,
                          const std::string& message) {
  throw InternalError(
      str_cat("internal error at ", file, ":", line, ": ", condition, message.empty() ? "" : ": ",
              message, "\n  fix: this is a bug in fathom; please report it with this message"));
}

}  // namespace fathom
