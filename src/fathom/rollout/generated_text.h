// The bytes of an answer as its tokens arrive, and the search for stop strings in them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fathom {

/// Stop strings are compared as bytes, so one is found even where it begins or ends inside a token.
class GeneratedText {
 public:
  /// The next token's bytes are to be appended to this.
  std::string* grow();

  /// Looks for a stop string that ends in what was appended since grow(). @return it, and the text
  /// is then cut before it; null when there is none. When several are complete, the one that begins
  /// first counts, of those the one that comes first in `stop`.
  const std::string* cut_at_stop(const std::vector<std::string>& stop);

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
  size_t old_size_ = 0;  // before the last token
};

}  // namespace fathom
