#include "fathom/server/json_fields.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fathom/config/words.h"
#include "fathom/server/http.h"
#include "fathom/tokenizer/python_json.h"

namespace fathom {
namespace {

constexpr size_t kShownText = 60;

bool asks_for_nothing(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return true;
    case Json::value_t::boolean:
      return !value.get<bool>();
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
    case Json::value_t::number_float:
      return value.get<double>() == 0;
    case Json::value_t::string:
    case Json::value_t::array:
    case Json::value_t::object:
      return value.empty() || (value.is_string() && value.get_ref<const std::string&>().empty());
    default:
      return false;
  }
}

}  // namespace

std::string describe_json(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::string: {
      const std::string& text = value.get_ref<const std::string&>();
      if (text.size() > kShownText) return str_cat("a text of ", text.size(), " bytes");
      return str_cat("the text ", dump_python_json(value));
    }
    case Json::value_t::array:
      return str_cat("a list of ", value.size());
    case Json::value_t::object:
      return "an object";
    case Json::value_t::binary:
      return "an integer of more than 64 bits";
    default:
      return dump_python_json(value);
  }
}

Json parse_body(const std::string& body) {
  if (body.empty()) throw HttpError(400, "the body is empty; a JSON object is expected");
  Json json;
  try {
    json = parse_python_json(body, "body");
  } catch (const UserError& e) {
    throw HttpError(400, e.what());
  }
  if (!json.is_object()) {
    throw HttpError(400, str_cat("body: a JSON object is expected, got ", describe_json(json)));
  }
  return json;
}

JsonFields::JsonFields(const Json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object.is_object()) {
    throw HttpError(400, str_cat(where_, ": an object is expected, got ", describe_json(object)),
                    where_);
  }
}

std::string JsonFields::name(std::string_view key) const {
  return where_.empty() ? std::string(key) : str_cat(where_, ".", key);
}

void JsonFields::fail(std::string_view key, const std::string& expected, const Json& got) const {
  throw HttpError(400, str_cat(name(key), ": ", expected, ", got ", describe_json(got)), name(key));
}

const Json* JsonFields::find(const char* key) {
  read_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::flag(const char* key, bool fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail(key, "true or false is expected", *value);
  return value->get<bool>();
}

int64_t JsonFields::integer(const char* key, int64_t fallback, int64_t low, int64_t high) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  const bool fits =
      value->is_number_integer() &&
      (!value->is_number_unsigned() ||
       value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) &&
      value->get<int64_t>() >= low && value->get<int64_t>() <= high;
  if (!fits) {
    const bool is_open = high == std::numeric_limits<int64_t>::max();
    fail(key,
         is_open ? str_cat("an integer of at least ", low, " is expected")
                 : str_cat("an integer from ", low, " to ", high, " is expected"),
         *value);
  }
  return value->get<int64_t>();
}

std::optional<uint64_t> JsonFields::seed(const char* key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) fail(key, "an integer of 64 bits is expected", *value);
  return value->is_number_unsigned() ? value->get<uint64_t>()
                                     : static_cast<uint64_t>(value->get<int64_t>());
}

double JsonFields::number(const char* key, double fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    fail(key, "a number is expected", *value);
  }
  return value->get<double>();
}

std::string JsonFields::text(const char* key, std::string fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) fail(key, "a text is expected", *value);
  return value->get<std::string>();
}

std::vector<std::string> JsonFields::texts(const char* key) {
  const Json* value = find(key);
  if (value == nullptr) return {};
  std::vector<std::string> out;
  const auto add = [&](const Json& item) {
    if (!item.is_string() || item.get_ref<const std::string&>().empty()) {
      fail(key, "a text or a list of texts is expected, none of them empty", item);
    }
    out.push_back(item.get<std::string>());
  };
  if (value->is_array()) {
    for (const Json& item : *value) add(item);
  } else {
    add(*value);
  }
  return out;
}

std::vector<int32_t> token_ids_of(const Json& list, int64_t vocab_size, const std::string& field) {
  const auto wrong = [&](const std::string& expected, const Json& got) {
    throw HttpError(400, str_cat(field, ": ", expected, ", got ", describe_json(got)), field);
  };
  if (!list.is_array()) wrong("a list of token ids is expected", list);
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& item : list) {
    if (!item.is_number_integer()) wrong("token ids are integers", item);
    const bool in_range = item.is_number_unsigned()
                              ? item.get<uint64_t>() < static_cast<uint64_t>(vocab_size)
                              : item.get<int64_t>() >= 0 && item.get<int64_t>() < vocab_size;
    if (!in_range) wrong(str_cat("token ids from 0 to ", vocab_size - 1, " are expected"), item);
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

std::vector<int32_t> JsonFields::token_ids(const char* key, int64_t vocab_size) {
  const Json* value = find(key);
  if (value == nullptr) return {};
  return token_ids_of(*value, vocab_size, name(key));
}

void JsonFields::refuse(std::initializer_list<const char*> keys, const std::string& reason) {
  for (const char* key : keys) {
    const Json* value = find(key);
    if (value == nullptr || asks_for_nothing(*value)) continue;
    throw HttpError(400, str_cat(name(key), ": ", reason), name(key));
  }
}

void JsonFields::ignore(std::initializer_list<const char*> keys) {
  for (const char* key : keys) read_.insert(key);
}

void JsonFields::refuse_unknown() const {
  for (const auto& [key, value] : object_.items()) {
    if (read_.contains(key)) continue;
    const std::string nearest =
        config::nearest_word(key.substr(0, kShownText), {read_.begin(), read_.end()});
    throw HttpError(400,
                    str_cat(name(key.substr(0, kShownText)), ": there is no such field",
                            nearest.empty() ? "" : "; did you mean " + nearest + "?"),
                    name(key.substr(0, kShownText)));
  }
}

}  // namespace fathom
