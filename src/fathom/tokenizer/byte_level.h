// The GPT-2 byte alphabet: every byte as one printable character, the form in which byte-level
// tokenizer files spell their tokens ("G-breve" for a space, "C-dot-above" for a newline).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom {

/// The bytes that a spelled token stands for; nullopt when a character is outside the alphabet
/// (special tokens spell themselves). `spelled` must be well-formed UTF-8.
std::optional<std::string> bytes_of_spelled_token(std::string_view spelled);

/// The spelling of raw bytes.
std::string spell_token_bytes(std::string_view bytes);

}  // namespace fathom
