#include "fathom/rollout/generated_text.h"

#include <algorithm>

namespace fathom {

std::string* GeneratedText::grow() {
  old_size_ = bytes_.size();
  return &bytes_;
}

bool GeneratedText::cut_at_stop(const std::vector<std::string>& stop) {
  size_t cut = std::string::npos;
  for (const std::string& s : stop) {
    const size_t overlap = std::min(old_size_, s.size() - 1);
    cut = std::min(cut, bytes_.find(s, old_size_ - overlap));
  }
  if (cut == std::string::npos) return false;
  bytes_.resize(cut);
  return true;
}

}  // namespace fathom
