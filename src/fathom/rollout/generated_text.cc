#include "fathom/rollout/generated_text.h"

#include <algorithm>

namespace fathom {

std::string* GeneratedText::grow() {
  old_size_ = bytes_.size();
  return &bytes_;
}

const std::string* GeneratedText::cut_at_stop(const std::vector<std::string>& stop) {
  const std::string* found = nullptr;
  size_t cut = std::string::npos;
  for (const std::string& s : stop) {
    const size_t overlap = std::min(old_size_, s.size() - 1);
    const size_t at = bytes_.find(s, old_size_ - overlap);
    if (at >= cut) continue;
    cut = at;
    found = &s;
  }
  if (found != nullptr) bytes_.resize(cut);
  return found;
}

}  // namespace fathom
