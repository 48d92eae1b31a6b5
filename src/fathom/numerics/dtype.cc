#include "fathom/numerics/dtype.h"

#include <array>
#include <utility>

#include "fathom/base/error.h"

namespace fathom {
namespace {

struct Entry {
  DType dtype;
  std::string_view name;
  int64_t size;
};
constexpr std::array<Entry, 12> kEntries = {{{DType::kBool, "BOOL", 1},
                                             {DType::kU8, "U8", 1},
                                             {DType::kI8, "I8", 1},
                                             {DType::kF8E4M3, "F8_E4M3", 1},
                                             {DType::kF8E8M0, "F8_E8M0", 1},
                                             {DType::kI16, "I16", 2},
                                             {DType::kF16, "F16", 2},
                                             {DType::kBF16, "BF16", 2},
                                             {DType::kI32, "I32", 4},
                                             {DType::kF32, "F32", 4},
                                             {DType::kF64, "F64", 8},
                                             {DType::kI64, "I64", 8}}};

const Entry& entry(DType dtype) {
  for (const Entry& e : kEntries) {
    if (e.dtype == dtype) return e;
  }
  throw InternalError("unknown dtype");
}

}  // namespace

int64_t dtype_size(DType dtype) { return entry(dtype).size; }
std::string_view dtype_name(DType dtype) { return entry(dtype).name; }
std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Entry& e : kEntries) {
    if (e.name == name) return e.dtype;
  }
  return std::nullopt;
}

}  // namespace fathom
