// What a worker has seen, as far as it matters for its prefix cache: hashes of the beginnings of
// prompts, cut at fixed steps. An approximation of the worker's own tree that costs 8 bytes a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string_view>
#include <unordered_map>

namespace fathom {

class PrefixIndex {
 public:
  static constexpr size_t kStep = 64;  // bytes of the prompt's text, or 16 token ids

  explicit PrefixIndex(size_t max_entries = size_t{1} << 20) : max_entries_(max_entries) {}

  /// Bytes of `prompt` that it begins with in common with something seen. A multiple of kStep, or
  /// all of it.
  size_t match(std::string_view prompt) const;
  /// The oldest entries go when there are too many.
  void insert(std::string_view prompt);
  size_t size() const { return entries_.size(); }

 private:
  using Order = std::list<uint64_t>;  // the latest first
  size_t max_entries_;
  Order order_;
  std::unordered_map<uint64_t, Order::iterator> entries_;
};

}  // namespace fathom
