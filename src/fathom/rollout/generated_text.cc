#include "fathom/rollout/generated_text.h"

#include <algorithm>

namespace fathom {

bool GeneratedText::append(std::string_view token_bytes, const std::vector<std::string>& stop) {
  const size_t old_size = bytes_.size();
  bytes_ += token_bytes;
  size_t cut = std::string::npos;
  for (const std::string& s : stop) {
    // Only a match that ends in the new bytes is news.
    const size_t overlap = std::min(old_size, s.size() - 1);
    cut = std::min(cut, bytes_.find(s, old_size - overlap));
  }
  if (cut == std::string::npos) return false;
  bytes_.resize(cut);
  return true;
}

}  // namespace fathom
