// UTF-8: validation, code points, and the replacement of broken bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fathom {

/// Byte position of the first byte that is not part of well-formed UTF-8 (Unicode 14, table 3-7:
/// no overlong forms, no surrogates, at most U+10FFFF); nullopt when the whole text is well formed.
std::optional<size_t> find_invalid_utf8(std::string_view bytes);

/// Copies `bytes`, with U+FFFD in place of every maximal part of a broken sequence (the practice of
/// Unicode section 3.9, which Rust's from_utf8_lossy and Python's errors="replace" follow too).
std::string replace_invalid_utf8(std::string_view bytes);

/// Appends one code point. `code_point` must not be a surrogate and at most U+10FFFF.
void append_utf8(std::string& out, uint32_t code_point);

/// Reads the code point that starts at `position` of well-formed text and moves past it.
uint32_t next_code_point(std::string_view text, size_t& position);

}  // namespace fathom
