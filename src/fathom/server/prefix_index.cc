#include "fathom/server/prefix_index.h"

#include <algorithm>
#include <functional>

#include "fathom/base/hash.h"

namespace fathom {
namespace {

/// Calls visit(hash of the beginning, its length) step by step until it returns false.
template <typename Visit>
void for_each_beginning(std::string_view prompt, Visit&& visit) {
  uint64_t hash = 0;
  for (size_t at = 0; at < prompt.size();) {
    const std::string_view piece = prompt.substr(at, PrefixIndex::kStep);
    hash = mix64(hash, std::hash<std::string_view>()(piece));
    at += piece.size();
    if (!visit(hash, at)) return;
  }
}

}  // namespace

size_t PrefixIndex::match(std::string_view prompt) const {
  size_t matched = 0;
  for_each_beginning(prompt, [&](uint64_t hash, size_t length) {
    if (!entries_.contains(hash)) return false;
    matched = length;
    return true;
  });
  return matched;
}

void PrefixIndex::insert(std::string_view prompt) {
  for_each_beginning(prompt, [&](uint64_t hash, size_t) {
    const auto found = entries_.find(hash);
    if (found != entries_.end()) {
      order_.splice(order_.begin(), order_, found->second);
    } else {
      order_.push_front(hash);
      entries_[hash] = order_.begin();
    }
    return true;
  });
  while (entries_.size() > max_entries_) {
    entries_.erase(order_.back());
    order_.pop_back();
  }
}

}  // namespace fathom
