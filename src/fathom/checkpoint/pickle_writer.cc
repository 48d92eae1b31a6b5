#include <bit>

#include "fathom/base/error.h"
#include "fathom/checkpoint/pickle.h"

namespace fathom {

PickleWriter::PickleWriter(bool memo_all) : memo_all_(memo_all) { out_ = "\x80\x02"; }

void PickleWriter::little_endian(uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) out_.push_back(static_cast<char>(value >> (8 * i)));
}

void PickleWriter::put() {
  const uint32_t index = memo_size_++;
  if (index < 256) {
    op('q');
    little_endian(index, 1);
  } else {
    op('r');
    little_endian(index, 4);
  }
}

bool PickleWriter::recall(const std::string& key) {
  const auto it = memo_.find(key);
  if (it == memo_.end()) return false;
  if (it->second < 256) {
    op('h');
    little_endian(it->second, 1);
  } else {
    op('j');
    little_endian(it->second, 4);
  }
  return true;
}

void PickleWriter::remember(const std::string& key) {
  memo_.emplace(key, memo_size_);
  put();
}

void PickleWriter::integer(int64_t value) {
  if (value >= 0 && value <= 0xFF) {
    op('K');
    little_endian(static_cast<uint64_t>(value), 1);
  } else if (value >= 0 && value <= 0xFFFF) {
    op('M');
    little_endian(static_cast<uint64_t>(value), 2);
  } else if (value >= INT32_MIN && value <= INT32_MAX) {
    op('J');
    little_endian(static_cast<uint64_t>(value), 4);
  } else {
    // The shortest two's complement that keeps the sign.
    int num_bytes = 8;
    while (num_bytes > 1) {
      const int shift = 64 - 8 * (num_bytes - 1);
      if (static_cast<int64_t>(static_cast<uint64_t>(value) << shift) >> shift != value) break;
      --num_bytes;
    }
    op('\x8a');
    little_endian(static_cast<uint64_t>(num_bytes), 1);
    little_endian(static_cast<uint64_t>(value), num_bytes);
  }
}

void PickleWriter::real(double value) {
  op('G');
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  for (int i = 7; i >= 0; --i) out_.push_back(static_cast<char>(bits >> (8 * i)));
}

void PickleWriter::string(std::string_view utf8) {
  const std::string key = std::string("s").append(utf8);
  if (recall(key)) return;
  op('X');
  little_endian(utf8.size(), 4);
  out_ += utf8;
  remember(key);
}

void PickleWriter::global(std::string_view module, std::string_view name) {
  const std::string key = std::string("c").append(module).append("\n").append(name);
  if (recall(key)) return;
  out_ += key;
  op('\n');
  remember(key);
}

void PickleWriter::tuple_from_mark() {
  op('t');
  if (memo_all_) put();
}

void PickleWriter::tuple(int size) {
  FATHOM_ASSERT(size >= 1 && size <= 3);
  op(static_cast<char>(0x84 + size));
  if (memo_all_) put();
}

void PickleWriter::integers(const std::vector<int64_t>& values) {
  if (values.empty()) return empty_tuple();
  const bool marked = values.size() > 3;
  if (marked) mark();
  for (int64_t v : values) integer(v);
  if (marked) {
    tuple_from_mark();
  } else {
    tuple(static_cast<int>(values.size()));
  }
}

void PickleWriter::empty_list() {
  op(']');
  if (memo_all_) put();
}

void PickleWriter::empty_dict() {
  op('}');
  if (memo_all_) put();
}

void PickleWriter::reduce() {
  op('R');
  if (memo_all_) put();
}

void PickleWriter::new_object() {
  op('\x81');
  if (memo_all_) put();
}

void PickleWriter::json(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return none();
    case Json::value_t::boolean:
      return boolean(value.get<bool>());
    case Json::value_t::number_integer:
      return integer(value.get<int64_t>());
    case Json::value_t::number_unsigned:
      FATHOM_CHECK(value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX),
                   "number too large for a checkpoint's arguments: ", value.get<uint64_t>());
      return integer(value.get<int64_t>());
    case Json::value_t::number_float:
      return real(value.get<double>());
    case Json::value_t::string:
      return string(value.get_ref<const std::string&>());
    case Json::value_t::array:
      empty_list();
      if (value.size() > 1) mark();
      for (const Json& element : value) json(element);
      if (value.size() == 1) append();
      if (value.size() > 1) appends();
      return;
    case Json::value_t::object:
      empty_dict();
      if (value.size() > 1) mark();
      for (const auto& [key, element] : value.items()) {
        string(key);
        json(element);
      }
      if (value.size() == 1) set_item();
      if (value.size() > 1) set_items();
      return;
    default:
      FATHOM_ASSERT(false, "a JSON value of this type has no pickle: ", value.type_name());
  }
}

std::string PickleWriter::finish() {
  op('.');
  return std::move(out_);
}

}  // namespace fathom
