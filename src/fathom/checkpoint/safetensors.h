// One safetensors file: an 8-byte length, a JSON header, then the tensors' bytes.
// The reader trusts nothing: it accepts a file only when every byte of it is accounted for.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/numerics/dtype.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// An element type as files name it. The format knows more types than the program computes with.
struct FileDType {
  std::string_view code;       // "F8_E4M3"
  int bits;                    // of one element
  std::optional<DType> dtype;  // null: can be listed but not read
};
/// Null for an unknown code. Pointers are to a static table in the format's own order.
const FileDType* find_file_dtype(std::string_view code);

struct TensorEntry {
  std::string name;
  const FileDType* type = nullptr;
  std::vector<int64_t> shape;  // as in the header: bytes for packed FP4 stored as I8 or U8
  int64_t begin = 0, end = 0;  // in the file
  int64_t num_bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
  std::vector<std::string> warnings;
};

/// @param file the whole file. @param origin for messages.
/// Errors: UserError for anything but a well-formed file: size, header length and bounds, UTF-8 and
/// JSON, repeated keys at any level, types, overflowing shapes, overlaps, holes, missing or extra
/// bytes at the end.
SafetensorsHeader parse_safetensors(std::string_view file, const std::string& origin);

/// A memory-mapped file. Pages are read when tensors are touched.
class SafetensorsFile {
 public:
  /// Errors: UserError, as above and when the file cannot be opened.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return map_.path(); }
  const std::vector<TensorEntry>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const std::vector<std::string>& warnings() const { return header_.warnings; }
  const TensorEntry* find(std::string_view name) const;  // null when there is none
  int64_t num_bytes() const { return map_.size(); }      // of the file
  std::string header_hash() const;                       // SHA-256 of length and header
  /// The entry's bytes; not aligned to more than one byte.
  const uint8_t* data(const TensorEntry& entry) const { return map_.data() + entry.begin; }
  /// A copy of a tensor. Errors: UserError for an unknown name or a type that cannot be read.
  Tensor read(std::string_view name) const;

 private:
  MappedFile map_;
  SafetensorsHeader header_;
  std::map<std::string_view, size_t> by_name_;
};

}  // namespace fathom
