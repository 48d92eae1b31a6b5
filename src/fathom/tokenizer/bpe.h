// Byte-pair encoding of one piece of text with a fixed vocabulary and list of merges.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fathom {

/// (left id, right id) -> rank of the merge. Open addressing; built once, then only read.
class MergeTable {
 public:
  static constexpr int32_t kNoMerge = INT32_MAX;

  MergeTable() { grow(16); }
  /// A pair given twice keeps the later rank.
  void insert(int32_t left, int32_t right, int32_t rank);
  int32_t rank(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key;
    int32_t rank;
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
           static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const;
  void grow(size_t num_slots);
  std::vector<Slot> slots_;  // a power of two of them, at most half in use
  size_t used_ = 0;
};

/// Result: the merge of lowest rank is applied first, the leftmost of equal ones, until none is
/// left. O(n log n) in the length of the piece. Deterministic; safe to call from several threads.
class BpeModel {
 public:
  /// Room for merging a piece; one a thread, reused from piece to piece.
  struct Scratch {
    struct Symbol {
      int32_t id, rank;    // rank of the pair that starts here
      int32_t next, prev;  // neighbours, -1 at the ends
    };
    struct Candidate {
      int32_t rank, position;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// @param tokens  raw bytes of every id that merging may reach; the views must outlive the model.
  ///                Ids without such bytes (special tokens, holes) are empty and are never
  ///                produced.
  /// @param ignore_merges  a piece that is a token as a whole is taken as it is.
  BpeModel(const std::vector<std::string_view>& tokens, bool ignore_merges);

  /// Adds the next merge (rank = number of merges so far): left + right become `result`.
  void add_merge(int32_t left, int32_t right, int32_t result);

  /// -1 when no token has exactly these bytes.
  int32_t find_token(std::string_view bytes) const;

  /// Appends the ids of `piece` (not empty) to `ids`.
  /// @return bytes.npos, or the position of the first byte that has no token of its own: then `ids`
  ///         is as before.
  size_t encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  void merge_short(Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_long(Scratch& scratch, std::vector<int32_t>& ids) const;

  std::unordered_map<std::string_view, int32_t> token_of_bytes_;
  int32_t token_of_byte_[256];
  MergeTable merges_;
  std::vector<int32_t> result_of_merge_;
  bool ignore_merges_;
  // Whether merging a token's own bytes gives the token back: found out at first use, then kept.
  // Most pieces of real text are one token, and this spares them the merging.
  enum : uint8_t { kUnknown, kWhole, kSplits };
  std::unique_ptr<std::atomic<uint8_t>[]> whole_;
};

}  // namespace fathom
