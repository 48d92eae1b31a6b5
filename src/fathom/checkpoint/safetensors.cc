#include "fathom/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/base/json.h"

namespace fathom {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's limit
constexpr size_t kMaxTensors = 4'000'000;
constexpr size_t kMaxRank = 16;
constexpr size_t kMaxDepth = 16;

// The order of the format: a writer sorts tensors by it, descending.
constexpr std::array<FileDType, 22> kFileDTypes = {{
    {"BOOL", 8, DType::kBool},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, DType::kU8},
    {"I8", 8, DType::kI8},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, DType::kF8E4M3},
    {"F8_E8M0", 8, DType::kF8E8M0},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, DType::kI16},
    {"U16", 16, std::nullopt},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"U32", 32, std::nullopt},
    {"F32", 32, DType::kF32},
    {"C64", 64, std::nullopt},
    {"F64", 64, DType::kF64},
    {"I64", 64, DType::kI64},
    {"U64", 64, std::nullopt},
}};

struct RawEntry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape, offsets;
};

std::string in_quotes(std::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

// Builds entries while the JSON is read, so that a repeated key is seen: a document tree keeps only
// one of the two.
class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  std::vector<RawEntry> entries;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> warnings;
  std::string problem;

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(int64_t v) override { return scalar(str_cat(v)); }
  bool number_float(double, const std::string& text) override { return scalar(text); }
  bool binary(binary_t&) override { return scalar("binary data"); }

  bool number_unsigned(uint64_t v) override {
    if (stack_.empty() || stack_.back().role != Role::kNumbers) return scalar(str_cat(v));
    if (stack_.back().numbers->size() >= kMaxRank) {
      return fail("tensor ", in_quotes(entries.back().name), ": more than ", kMaxRank,
                  " numbers in \"", stack_[stack_.size() - 2].key, "\"");
    }
    stack_.back().numbers->push_back(v);
    return true;
  }

  bool string(std::string& text) override {
    if (stack_.empty()) return scalar("a string");
    Frame& frame = stack_.back();
    if (frame.role == Role::kMetadata) {
      metadata[frame.key] = text;
      return true;
    }
    if (frame.role == Role::kTensor && frame.key == "dtype") {
      entries.back().dtype = text;
      return true;
    }
    return scalar("a string");
  }

  bool start_object(size_t) override {
    if (stack_.empty()) {
      stack_.push_back({Role::kTop, true});
      return true;
    }
    const Frame& parent = stack_.back();
    if (parent.role == Role::kTop) {
      if (parent.key == "__metadata__") {
        stack_.push_back({Role::kMetadata, true});
        return true;
      }
      if (entries.size() >= kMaxTensors) return fail("more than ", kMaxTensors, " tensors");
      entries.push_back({parent.key, {}, {}, {}});
      stack_.push_back({Role::kTensor, true});
      return true;
    }
    return start_ignored(true, "an object");
  }

  bool start_array(size_t) override {
    if (!stack_.empty() && stack_.back().role == Role::kTensor) {
      RawEntry& entry = entries.back();
      const std::string& key = stack_.back().key;
      if (key == "shape" || key == "data_offsets") {
        auto& numbers = key == "shape" ? entry.shape : entry.offsets;
        numbers.emplace();
        stack_.push_back({Role::kNumbers, false, {}, {}, &*numbers});
        return true;
      }
    }
    if (stack_.empty()) return scalar("an array");
    return start_ignored(false, "an array");
  }

  bool key(std::string& text) override {
    Frame& frame = stack_.back();
    if (!frame.keys.insert(text).second) {
      return fail("the key ", in_quotes(text), " appears twice in one object");
    }
    if (frame.role == Role::kTop && text.find('\0') != std::string::npos) {
      return fail("the tensor name ", in_quotes(text), " holds a NUL");
    }
    if (frame.role == Role::kTensor && text != "dtype" && text != "shape" &&
        text != "data_offsets") {
      warnings.push_back(str_cat("tensor ", in_quotes(entries.back().name), ": unknown member ",
                                 in_quotes(text), " is ignored"));
    }
    frame.key = text;
    return true;
  }

  bool end_object() override {
    stack_.pop_back();
    return true;
  }
  bool end_array() override {
    stack_.pop_back();
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    return fail("not valid JSON at byte ", position, ": ", e.what());
  }

 private:
  enum class Role { kTop, kMetadata, kTensor, kNumbers, kIgnored };
  struct Frame {
    Role role;
    bool is_object;
    std::string key = {};
    std::set<std::string> keys = {};
    std::vector<uint64_t>* numbers = nullptr;
  };

  template <typename... Parts>
  bool fail(const Parts&... parts) {
    if (problem.empty()) problem = str_cat(parts...);
    return false;
  }

  // A value where the format has none of this kind; anything goes inside an unknown member.
  bool scalar(const std::string& got) {
    if (stack_.empty()) return fail("must be a JSON object, got ", got);
    const Frame& frame = stack_.back();
    switch (frame.role) {
      case Role::kTop:
        return fail(in_quotes(frame.key), " must be an object, got ", got);
      case Role::kMetadata:
        return fail("__metadata__: the value of ", in_quotes(frame.key), " must be a string, got ",
                    got);
      case Role::kNumbers:
        return fail("tensor ", in_quotes(entries.back().name), ": ", stack_[stack_.size() - 2].key,
                    " must hold whole numbers from 0 to 2^64 - 1, got ", got);
      case Role::kTensor:
        if (frame.key == "dtype" || frame.key == "shape" || frame.key == "data_offsets") {
          return fail("tensor ", in_quotes(entries.back().name), ": ", frame.key,
                      frame.key == "dtype" ? " must be a string, got " : " must be a list, got ",
                      got);
        }
        return true;
      case Role::kIgnored:
        return true;
    }
    return true;
  }

  bool start_ignored(bool is_object, const std::string& got) {
    if (!scalar(got)) return false;
    if (stack_.size() >= kMaxDepth) return fail("nested deeper than ", kMaxDepth, " levels");
    stack_.push_back({Role::kIgnored, is_object});
    return true;
  }

  std::vector<Frame> stack_;
};

TensorEntry check_entry(const RawEntry& raw, const std::string& origin) {
  const std::string who = str_cat(origin, ": tensor ", in_quotes(raw.name));
  for (const auto& [present, what] : {std::pair{raw.dtype.has_value(), "dtype"},
                                      {raw.shape.has_value(), "shape"},
                                      {raw.offsets.has_value(), "data_offsets"}}) {
    FATHOM_CHECK(present, who, ": ", what, " is missing");
  }
  FATHOM_CHECK(raw.offsets->size() == 2, who, ": data_offsets must hold 2 numbers, got ",
               raw.offsets->size());
  TensorEntry entry;
  entry.name = raw.name;
  entry.type = find_file_dtype(*raw.dtype);
  FATHOM_CHECK(entry.type != nullptr, who, ": unknown dtype ", in_quotes(*raw.dtype));
  uint64_t bits = 1;
  bool fits = true;
  for (const uint64_t dim : *raw.shape) {
    fits = fits && dim <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) &&
           !__builtin_mul_overflow(bits, dim, &bits);
    entry.shape.push_back(static_cast<int64_t>(dim));
  }
  fits = fits && !__builtin_mul_overflow(bits, static_cast<uint64_t>(entry.type->bits), &bits);
  FATHOM_CHECK(fits, who, ": the shape is too large for any file");
  const uint64_t begin = (*raw.offsets)[0], end = (*raw.offsets)[1];
  FATHOM_CHECK(begin <= end && end <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
               who, ": data_offsets run from ", begin, " to ", end);
  FATHOM_CHECK(bits % 8 == 0, who, ": ", shape_to_string(entry.shape), " of ", entry.type->code,
               " is not a whole number of bytes");
  FATHOM_CHECK(bits / 8 == end - begin, who, ": ", shape_to_string(entry.shape), " of ",
               entry.type->code, " takes ", bits / 8, " bytes, data_offsets give ", end - begin);
  entry.begin = static_cast<int64_t>(begin);
  entry.end = static_cast<int64_t>(end);
  return entry;
}

}  // namespace

const FileDType* find_file_dtype(std::string_view code) {
  for (const FileDType& type : kFileDTypes) {
    if (type.code == code) return &type;
  }
  return nullptr;
}

SafetensorsHeader parse_safetensors(std::string_view file, const std::string& origin) {
  constexpr const char* kFix = "\n  fix: fetch or write this file again";
  FATHOM_CHECK(file.size() >= 8, origin, ": ", file.size(),
               " bytes is too short for a safetensors file", kFix);
  uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), 8);
  FATHOM_CHECK(header_size <= kMaxHeaderBytes, origin, ": the header length ", header_size,
               " is above the limit of ", kMaxHeaderBytes, "; this is no safetensors file", kFix);
  FATHOM_CHECK(header_size <= file.size() - 8, origin, ": the header takes ", header_size,
               " bytes, the file has ", file.size() - 8, " after its length: truncated", kFix);
  const std::string_view text = file.substr(8, header_size);
  // The JSON library would skip a byte order mark and take a NUL for the end of the text.
  FATHOM_CHECK(!text.starts_with("\xEF\xBB\xBF"), origin, ": the header starts with a byte ",
               "order mark");
  FATHOM_CHECK(text.find('\0') == std::string_view::npos, origin, ": the header holds a NUL byte");

  HeaderHandler handler;
  const bool parsed = Json::sax_parse(text.begin(), text.end(), &handler);
  FATHOM_CHECK(parsed && handler.problem.empty(), origin, ": header: ", handler.problem, kFix);

  SafetensorsHeader header;
  header.metadata = std::move(handler.metadata);
  header.warnings = std::move(handler.warnings);
  header.tensors.reserve(handler.entries.size());
  for (const RawEntry& raw : handler.entries) header.tensors.push_back(check_entry(raw, origin));
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t position = 0;
  for (const TensorEntry& entry : header.tensors) {
    FATHOM_CHECK(entry.begin == position, origin, ": tensor ", in_quotes(entry.name), " starts at ",
                 entry.begin, " where ", position, " was expected: tensors ",
                 entry.begin < position ? "overlap" : "leave a hole", kFix);
    position = entry.end;
  }
  const int64_t data_size = static_cast<int64_t>(file.size() - 8 - header_size);
  FATHOM_CHECK(position == data_size, origin, ": the tensors take ", position,
               " bytes, the file has ", data_size,
               position > data_size ? ": truncated" : ": extra bytes at the end", kFix);
  for (TensorEntry& entry : header.tensors) {
    entry.begin += 8 + static_cast<int64_t>(header_size);
    entry.end += 8 + static_cast<int64_t>(header_size);
  }
  return header;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : map_(path) {
  header_ = parse_safetensors(
      {reinterpret_cast<const char*>(map_.data()), static_cast<size_t>(map_.size())}, path);
  for (size_t i = 0; i < header_.tensors.size(); ++i) {
    by_name_.emplace(header_.tensors[i].name, i);
  }
}

std::string SafetensorsFile::header_hash() const {
  int64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | map_.data()[i];
  return sha256_hex({reinterpret_cast<const char*>(map_.data()), static_cast<size_t>(8 + length)});
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &header_.tensors[it->second];
}

Tensor SafetensorsFile::read(std::string_view name) const {
  const TensorEntry* entry = find(name);
  FATHOM_CHECK(entry != nullptr, path(), ": no tensor ", in_quotes(name));
  FATHOM_CHECK(entry->type->dtype.has_value(), path(), ": tensor ", in_quotes(name), " has dtype ",
               entry->type->code, ", which cannot be read");
  Tensor tensor = Tensor::empty(entry->shape, *entry->type->dtype);
  std::memcpy(tensor.bytes(), data(*entry), static_cast<size_t>(entry->num_bytes()));
  return tensor;
}

}  // namespace fathom
