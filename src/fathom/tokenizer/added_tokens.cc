#include "fathom/tokenizer/added_tokens.h"

#include "fathom/base/error.h"

namespace fathom {

int32_t AddedTokenMatcher::child(int32_t node, uint8_t byte) const {
  for (const auto& [b, next] : nodes_[static_cast<size_t>(node)].children) {
    if (b == byte) return next;
  }
  return -1;
}

void AddedTokenMatcher::add(std::string_view text, int32_t id) {
  FATHOM_ASSERT(!text.empty());
  int32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      nodes_[static_cast<size_t>(node)].children.emplace_back(byte, next);
    }
    node = next;
  }
  nodes_[static_cast<size_t>(node)].id = id;
  starts_[static_cast<uint8_t>(text[0])] = true;
}

bool AddedTokenMatcher::find(std::string_view text, size_t start, Match* match) const {
  for (size_t begin = start; begin < text.size(); ++begin) {
    if (!starts_[static_cast<uint8_t>(text[begin])]) continue;
    bool found = false;
    int32_t node = 0;
    for (size_t end = begin; end < text.size();) {
      node = child(node, static_cast<uint8_t>(text[end]));
      if (node < 0) break;
      ++end;
      const int32_t id = nodes_[static_cast<size_t>(node)].id;
      if (id >= 0) {
        *match = {begin, end, id};
        found = true;
      }
    }
    if (found) return true;
  }
  return false;
}

}  // namespace fathom
