// Error classes and checks. A message says what was got, where, and how to mend it.
//   UserError     bad input from outside (files, requests, data): exit code 1
//   ConfigError   a wrong command line or option: exit code 2
//   InternalError our own bug: exit code 1, and the message says so
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
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

/// Joins the parts with operator<<. For building messages.
template <typename... Parts>
std::string str_cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
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
