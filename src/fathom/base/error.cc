#include "fathom/base/error.h"

#include <charconv>

namespace fathom {
namespace internal {
namespace {

template <typename Number>
void append_digits(std::string* out, Number number) {
  char digits[24];
  const char* end = std::to_chars(digits, digits + sizeof digits, number).ptr;
  out->append(digits, static_cast<size_t>(end - digits));
}

}  // namespace

void append_text(std::string* out, std::string_view text) { out->append(text); }
void append_number(std::string* out, int64_t number) { append_digits(out, number); }
void append_unsigned(std::string* out, uint64_t number) { append_digits(out, number); }

}  // namespace internal

void throw_internal_error(const char* file, int line, const char* condition,
                          const std::string& message) {
  throw InternalError(
      str_cat("internal error at ", file, ":", line, ": ", condition, message.empty() ? "" : ": ",
              message, "\n  fix: this is a bug in fathom; please report it with this message"));
}

}  // namespace fathom
