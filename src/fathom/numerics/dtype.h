// Element types of files and tensors, by their safetensors codes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace fathom {

enum class DType { kBool, kU8, kI8, kF8E4M3, kF8E8M0, kI16, kF16, kBF16, kI32, kF32, kF64, kI64 };

int64_t dtype_size(DType dtype);                              // bytes of one element
std::string_view dtype_name(DType dtype);                     // "F8_E4M3"
std::optional<DType> dtype_from_name(std::string_view name);  // null for an unknown code

}  // namespace fathom
