// Typed reading of a request's JSON object. Everything that is wrong is an HttpError 400 that names
// the field. A field that is null counts as absent.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/base/json.h"

namespace fathom {

class JsonFields {
 public:
  /// @param where  the object's own name, put before its fields' names; empty: the whole body.
  /// Errors: HttpError when `object` is not one.
  JsonFields(const Json& object, std::string where);

  /// Null when absent. Counts as read.
  const Json* find(const char* key);
  bool flag(const char* key, bool fallback);
  int64_t integer(const char* key, int64_t fallback, int64_t low, int64_t high);
  std::optional<uint64_t> seed(const char* key);  // negative ones by their bits
  double number(const char* key, double fallback);
  std::string text(const char* key, std::string fallback);
  /// A string or a list of strings; none may be empty.
  std::vector<std::string> texts(const char* key);
  std::vector<int32_t> token_ids(const char* key, int64_t vocab_size);

  /// Fields that may only have values that ask for nothing: null, false, 0, "", [], {}.
  void refuse(std::initializer_list<const char*> keys, const std::string& reason);
  /// Fields that change no answer; any value will do.
  void ignore(std::initializer_list<const char*> keys);
  /// Errors for fields that nothing has asked for, with the nearest one that was.
  void refuse_unknown() const;

  /// "sampling_params.top_p" of "top_p".
  std::string name(std::string_view key) const;
  /// Throws HttpError 400 "<field>: <expected>, got <value>".
  [[noreturn]] void fail(std::string_view key, const std::string& expected, const Json& got) const;

 private:
  const Json& object_;
  std::string where_;
  std::set<std::string> read_;
};

/// Checked token ids of a JSON list. Errors: HttpError 400 naming `field`.
std::vector<int32_t> token_ids_of(const Json& list, int64_t vocab_size, const std::string& field);

/// "a list", "the text \"abc\"", "3.5": for messages; short whatever the value is.
std::string describe_json(const Json& value);

/// A request's body. Errors: HttpError 400 for what is not a JSON object.
Json parse_body(const std::string& body);

}  // namespace fathom
