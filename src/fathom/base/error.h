// Error classes and checks. A message says what was got, where, and how to mend it.
//   UserError     bad input from outside (files, requests, data): exit code 1
//   ConfigError   a wrong command line or option: exit code 2
//   InternalError our own bug: exit code 1, and the message says so
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace fathom {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class UserError : public Error {
 public:
  using Error::Error;
};

class ConfigError : public Error {
 public:
  using Error::Error;
};

class InternalError : public Error {
 public:
  using Error::Error;
};

namespace internal {

void append_text(std::string* out, std::string_view text);
void append_number(std::string* out, int64_t number);
void append_unsigned(std::string* out, uint64_t number);

/// As operator<<, without the cost of a stream for texts and whole numbers, which names are made
/// of.
template <typename Part>
void append_part(std::string* out, const Part& part) {
  if constexpr (std::is_convertible_v<const Part&, std::string_view>) {
    append_text(out, part);
  } else if constexpr (std::is_integral_v<Part> && sizeof(Part) >= sizeof(int)) {
    if constexpr (std::is_signed_v<Part>) {
      append_number(out, static_cast<int64_t>(part));
    } else {
      append_unsigned(out, static_cast<uint64_t>(part));
    }
  } else {
    std::ostringstream stream;
    stream << part;
    *out += std::move(stream).str();
  }
}

}  // namespace internal

/// Joins the parts as operator<< writes them. For building messages and names.
template <typename... Parts>
std::string str_cat(const Parts&... parts) {
  std::string out;
  (internal::append_part(&out, parts), ...);
  return out;
}

[[noreturn]] void throw_internal_error(const char* file, int line, const char* condition,
                                       const std::string& message);

/// Runs `body`; an Error thrown inside is rethrown as the same class with "<context>: " in front.
template <typename Body>
auto with_context(const std::string& context, Body&& body) {
  try {
    return body();
  } catch (const UserError& e) {
    throw UserError(context + ": " + e.what());
  } catch (const ConfigError& e) {
    throw ConfigError(context + ": " + e.what());
  } catch (const InternalError& e) {
    throw InternalError(context + ": " + e.what());
  }
}

}  // namespace fathom

/// Bad input from outside: throws UserError with the parts as its message.
#define FATHOM_CHECK(condition, ...)                             \
  do {                                                           \
    if (!(condition)) [[unlikely]]                               \
      throw ::fathom::UserError(::fathom::str_cat(__VA_ARGS__)); \
  } while (false)

/// Our own invariant: throws InternalError with file, line, condition and the parts.
#define FATHOM_ASSERT(condition, ...)                                                   \
  do {                                                                                  \
    if (!(condition)) [[unlikely]]                                                      \
      ::fathom::throw_internal_error(__FILE__, __LINE__, #condition,                    \
                                     ::fathom::str_cat("" __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)
