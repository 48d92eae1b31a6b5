// The strings that DeepSeek-V4's chat format is made of. Ids are looked up in the tokenizer.
#pragma once

#include <string_view>

namespace fathom::chat_tokens {

// U+FF5C is a full-width vertical bar, U+2581 a low block that stands for a space.
inline constexpr std::string_view kBos = "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>";
inline constexpr std::string_view kEos = "<\uFF5Cend\u2581of\u2581sentence\uFF5C>";
inline constexpr std::string_view kUser = "<\uFF5CUser\uFF5C>";
inline constexpr std::string_view kAssistant = "<\uFF5CAssistant\uFF5C>";
inline constexpr std::string_view kLatestReminder = "<\uFF5Clatest_reminder\uFF5C>";
inline constexpr std::string_view kThinkStart = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";
inline constexpr std::string_view kDsml = "\uFF5CDSML\uFF5C";

}  // namespace fathom::chat_tokens
