#include "fathom/tokenizer/python_json.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <unordered_map>

#include "fathom/base/error.h"
#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

constexpr int kMaxDepth = 1000;

class Reader {
 public:
  Reader(std::string_view text, const std::string& origin, DuplicateKeys duplicates)
      : text_(text), origin_(origin), duplicates_(duplicates) {}

  Json run() {
    if (const auto bad = find_invalid_utf8(text_)) {
      at_ = *bad;
      fail("the text is not UTF-8");
    }
    Json value = read_value(0);
    skip_spaces();
    if (at_ != text_.size()) fail("more text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(str_cat(origin_, ": not valid JSON at byte ", at_, ": ", what));
  }

  void skip_spaces() {
    while (at_ < text_.size() &&
           std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) {
      ++at_;
    }
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read_value(int depth) {
    if (depth > kMaxDepth) fail(str_cat("nested deeper than ", kMaxDepth));
    skip_spaces();
    switch (peek()) {
      case '{':
        return read_object(depth);
      case '[':
        return read_array(depth);
      case '"':
        return read_string();
      default:
        break;
    }
    if (take("null")) return nullptr;
    if (take("true")) return true;
    if (take("false")) return false;
    if (take("NaN")) return std::numeric_limits<double>::quiet_NaN();
    if (take("Infinity")) return std::numeric_limits<double>::infinity();
    if (take("-Infinity")) return -std::numeric_limits<double>::infinity();
    return read_number();
  }

  Json read_object(int depth) {
    Json object = Json::object();
    auto& members = object.get_ref<Json::object_t&>();
    std::unordered_map<std::string, size_t> index_of_key;
    ++at_;
    skip_spaces();
    if (take("}")) return object;
    do {
      skip_spaces();
      if (peek() != '"') fail("a key in double quotes is expected");
      std::string key = read_string();
      skip_spaces();
      if (!take(":")) fail("':' is expected");
      Json value = read_value(depth + 1);
      const auto [found, is_new] = index_of_key.emplace(key, members.size());
      if (is_new) {
        // push_back: the map's own insertion searches all keys first.
        members.push_back({std::move(key), std::move(value)});
      } else if (duplicates_ == DuplicateKeys::kLastWins) {
        (members.begin() + static_cast<ptrdiff_t>(found->second))->second = std::move(value);
      } else {
        fail(str_cat("the key \"", key, "\" appears twice in one object"));
      }
      skip_spaces();
    } while (take(","));
    if (!take("}")) fail("',' or '}' is expected");
    return object;
  }

  Json read_array(int depth) {
    Json array = Json::array();
    ++at_;
    skip_spaces();
    if (take("]")) return array;
    do {
      array.push_back(read_value(depth + 1));
      skip_spaces();
    } while (take(","));
    if (!take("]")) fail("',' or ']' is expected");
    return array;
  }

  uint32_t read_hex4() {
    uint32_t value = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4) {
      fail("four hexadecimal digits are expected after \\u");
    }
    at_ += 4;
    return value;
  }

  void read_escape(std::string& out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        out.push_back(c);
        return;
      case 'b':
        out.push_back('\b');
        return;
      case 'f':
        out.push_back('\f');
        return;
      case 'n':
        out.push_back('\n');
        return;
      case 'r':
        out.push_back('\r');
        return;
      case 't':
        out.push_back('\t');
        return;
      case 'u': {
        uint32_t code_point = read_hex4();
        if (code_point >= 0xD800 && code_point < 0xDC00 && take("\\u")) {
          const uint32_t low = read_hex4();
          if (low < 0xDC00 || low > 0xDFFF) fail("a surrogate without its partner");
          code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
        }
        if (code_point >= 0xD800 && code_point <= 0xDFFF) fail("a surrogate without its partner");
        append_utf8(out, code_point);
        return;
      }
      default:
        --at_;
        fail("an unknown escape");
    }
  }

  std::string read_string() {
    std::string out;
    ++at_;
    for (;;) {
      if (at_ >= text_.size()) fail("a string without end");
      const char c = text_[at_];
      if (static_cast<uint8_t>(c) < 0x20) fail("a control character inside a string");
      ++at_;
      if (c == '"') return out;
      if (c == '\\') {
        read_escape(out);
      } else {
        out.push_back(c);
      }
    }
  }

  bool take_digits() {
    const size_t from = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > from;
  }

  Json read_number() {
    const size_t begin = at_;
    take("-");
    if (!take("0") && !take_digits()) {
      at_ = begin;
      fail(at_ < text_.size() ? "a value is expected" : "the text ends where a value is expected");
    }
    bool is_integer = true;
    size_t end = at_;
    if (take(".")) {
      if (!take_digits()) fail("a digit is expected after '.'");
      is_integer = false;
      end = at_;
    }
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      if (!take_digits()) fail("a digit is expected in the exponent");
      is_integer = false;
      end = at_;
    }
    const std::string digits(text_.substr(begin, end - begin));
    return is_integer ? integer_of(digits) : Json(double_of(digits));
  }

  static Json integer_of(const std::string& digits) {
    const char* const end = digits.data() + digits.size();
    int64_t small = 0;
    if (std::from_chars(digits.data(), end, small).ec == std::errc()) return small;
    uint64_t large = 0;
    if (digits[0] != '-' && std::from_chars(digits.data(), end, large).ec == std::errc()) {
      return large;
    }
    return Json::binary(Json::binary_t::container_type(digits.begin(), digits.end()), kBigInteger);
  }

  static double double_of(const std::string& digits) {
    double value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    // Out of range: strtod tells overflow (infinity) from underflow (zero), from_chars does not.
    return error == std::errc() ? value : std::strtod(digits.c_str(), nullptr);
  }

  std::string_view text_;
  const std::string& origin_;
  DuplicateKeys duplicates_;
  size_t at_ = 0;
};

void dump_string(const std::string& text, std::string& out) {
  out.push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          constexpr char kHex[] = "0123456789abcdef";
          out += "\\u00";
          out.push_back(kHex[static_cast<uint8_t>(c) >> 4]);
          out.push_back(kHex[static_cast<uint8_t>(c) & 15]);
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

void dump_value(const Json& value, std::string& out) {
  const char* separator = "";
  switch (value.type()) {
    case Json::value_t::object:
      out.push_back('{');
      for (const auto& [key, member] : value.items()) {
        out += separator;
        dump_string(key, out);
        out += ": ";
        dump_value(member, out);
        separator = ", ";
      }
      out.push_back('}');
      return;
    case Json::value_t::array:
      out.push_back('[');
      for (const Json& item : value) {
        out += separator;
        dump_value(item, out);
        separator = ", ";
      }
      out.push_back(']');
      return;
    case Json::value_t::string:
      return dump_string(value.get_ref<const std::string&>(), out);
    case Json::value_t::boolean:
      out += value.get<bool>() ? "true" : "false";
      return;
    case Json::value_t::number_integer:
      out += std::to_string(value.get<int64_t>());
      return;
    case Json::value_t::number_unsigned:
      out += std::to_string(value.get<uint64_t>());
      return;
    case Json::value_t::number_float:
      out += python_float_repr(value.get<double>());
      return;
    case Json::value_t::binary: {
      const Json::binary_t& digits = value.get_binary();
      FATHOM_CHECK(digits.has_subtype() && digits.subtype() == kBigInteger,
                   "a binary value has no JSON form");
      out.append(digits.begin(), digits.end());
      return;
    }
    case Json::value_t::null:
    case Json::value_t::discarded:
      out += "null";
      return;
  }
}

}  // namespace

Json parse_python_json(std::string_view text, const std::string& origin, DuplicateKeys duplicates) {
  return Reader(text, origin, duplicates).run();
}

std::string dump_python_json(const Json& value) {
  std::string out;
  dump_value(value, out);
  return out;
}

std::string python_float_repr(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char buffer[40];
  const auto [last, error] =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  FATHOM_ASSERT(error == std::errc());
  // d.ddde+xx -> the digits, and where the decimal point goes among them.
  const std::string_view text(buffer, static_cast<size_t>(last - buffer));
  const size_t e = text.find('e');
  const std::string sign = text[0] == '-' ? "-" : "";
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  const bool is_small = text[e + 1] == '-';
  int exponent = 0;
  std::from_chars(buffer + e + 2, last, exponent);
  if (is_small) exponent = -exponent;
  const int point = exponent + 1;
  const int count = static_cast<int>(digits.size());
  // repr() leaves the plain form for exponents below -4 and from 16 on.
  if (point <= -4 || point > 16) {
    std::string out = sign + digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    const std::string magnitude = std::to_string(std::abs(exponent));
    return out + (exponent < 0 ? "e-" : "e+") + (magnitude.size() < 2 ? "0" : "") + magnitude;
  }
  if (point <= 0) return sign + "0." + std::string(static_cast<size_t>(-point), '0') + digits;
  if (point >= count)
    return sign + digits + std::string(static_cast<size_t>(point - count), '0') + ".0";
  return sign + digits.substr(0, static_cast<size_t>(point)) + "." +
         digits.substr(static_cast<size_t>(point));
}

}  // namespace fathom
