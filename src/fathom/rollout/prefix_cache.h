// States of prefixes that were computed before, kept to be continued: a tree whose nodes are pages
// of tokens. A node shares the history pages of whoever computed it and has a checkpoint of the
// fixed-size state at its end, so a hit gives the bits of a cold run.
//
//   root -> [5 9 2 7] -> [1 1 3 8]      page size 4: a prompt 5 9 2 7 1 1 3 8 4 starts at token 8
//                     -> [1 6 0 0]
//
// Pages that run are held by their sequences too: what is evicted here stays alive for them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "fathom/model/batch.h"
#include "fathom/model/sequence_state.h"

namespace fathom {

struct PrefixCacheCounters {
  int64_t num_hits = 0;  // matches of at least a page
  int64_t num_misses = 0;
  int64_t num_hit_tokens = 0;    // tokens that were not computed again
  int64_t num_asked_tokens = 0;  // tokens of all matches, hit or not
  int64_t num_evictions = 0;     // pages
};

class PrefixCache {
 public:
  /// @param max_pages 0: as many as the budget of the pools allows
  explicit PrefixCache(std::shared_ptr<StateSpace> space, int64_t max_pages = 0);
  ~PrefixCache();

  /// Tokens of the longest cached prefix of whole pages, at most max_tokens. Changes nothing.
  /// @param with_replay only pages whose routes and picks are kept count.
  int64_t cached_tokens(std::span<const int32_t> tokens, int64_t max_tokens,
                        bool with_replay) const;

  /// A state behind that prefix; it becomes the most recently used.
  /// @param replay where not null, only pages with routes and picks count, and they are copied
  /// here.
  /// @return null when there is no such prefix, or no memory for the state.
  std::unique_ptr<SequenceState> resume(std::span<const int32_t> tokens, int64_t max_tokens,
                                        ReplayRecord* replay);

  /// Keeps the last page of `tokens`, a whole number of pages. Left out when the page before it is
  /// not cached. A page that is there already only gains the replay rows.
  /// @param state holds the page; @param checkpoint at its end
  /// @param replay null, or holds routes and picks of the page
  void insert(std::span<const int32_t> tokens, const SequenceState& state, StateBlock checkpoint,
              const ReplayRecord* replay);

  /// Drops the page that was not used for longest and that no other page follows.
  /// @return false when there is none.
  bool evict_one();
  void clear();

  int64_t num_pages() const { return num_pages_; }
  const PrefixCacheCounters& counters() const { return counters_; }

 private:
  struct Node;
  std::vector<Node*> find(std::span<const int32_t> tokens, int64_t max_tokens,
                          bool with_replay) const;
  void touch(Node* node);
  void read_replay(const std::vector<Node*>& path, ReplayRecord* replay) const;
  void write_replay(Node* node, int64_t page, const ReplayRecord& replay);

  std::shared_ptr<StateSpace> space_;
  int64_t max_pages_;
  std::unique_ptr<Node> root_;
  std::map<uint64_t, Node*> leaves_;  // by last use
  uint64_t clock_ = 0;
  int64_t num_pages_ = 0;
  PrefixCacheCounters counters_;
};

}  // namespace fathom
