// The bytes of an answer as its tokens arrive, and the search for stop strings in them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// Stop strings are compared as bytes, so one is found even where it begins or ends inside a token.
class GeneratedText {
 public:
  /// Appends one token's bytes. @return true when a stop string is now contained; the text is then
  /// cut before it. When one token completes several, the one that begins first counts.
  bool append(std::string_view token_bytes, const std::vector<std::string>& stop);

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace fathom
