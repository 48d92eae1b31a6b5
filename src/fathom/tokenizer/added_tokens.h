// Literal tokens that are cut out of a text before anything else looks at it.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom {

/// Finds the leftmost, and among those the longest, of a set of strings. A byte trie, walked from
/// every position whose byte can start one: linear in the text times the longest token.
class AddedTokenMatcher {
 public:
  /// `text` must not be empty. Given twice, the later id counts.
  void add(std::string_view text, int32_t id);
  bool empty() const { return nodes_.size() == 1; }

  struct Match {
    size_t begin, end;  // bytes
    int32_t id;
  };
  /// The first match that begins at or after `start`; false when there is none.
  bool find(std::string_view text, size_t start, Match* match) const;

 private:
  struct Node {
    int32_t id = -1;                                    // the token that ends here
    std::vector<std::pair<uint8_t, int32_t>> children;  // (byte, node)
  };
  int32_t child(int32_t node, uint8_t byte) const;
  std::vector<Node> nodes_{1};
  bool starts_[256] = {};
};

}  // namespace fathom
