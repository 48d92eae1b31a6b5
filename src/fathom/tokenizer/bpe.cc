#include "fathom/tokenizer/bpe.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {
namespace {

constexpr uint64_t kEmptyKey = ~uint64_t{0};
// Up to this many symbols a scan for the lowest rank is faster than a heap.
constexpr size_t kShortPiece = 32;

bool later(const BpeModel::Scratch::Candidate& a, const BpeModel::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

void MergeTable::grow(size_t num_slots) {
  const std::vector<Slot> old = std::move(slots_);
  slots_.assign(num_slots, Slot{kEmptyKey, kNoMerge});
  for (const Slot& slot : old) {
    if (slot.key != kEmptyKey) slots_[slot_of(slot.key)] = slot;
  }
}

size_t MergeTable::slot_of(uint64_t key) const {
  const uint64_t mask = slots_.size() - 1;
  uint64_t at = (key * 0x9E3779B97F4A7C15ull) >> 20;
  while (slots_[at & mask].key != key && slots_[at & mask].key != kEmptyKey) ++at;
  return static_cast<size_t>(at & mask);
}

void MergeTable::insert(int32_t left, int32_t right, int32_t rank) {
  if (2 * (used_ + 1) > slots_.size()) grow(slots_.size() * 2);
  Slot& slot = slots_[slot_of(key_of(left, right))];
  if (slot.key == kEmptyKey) ++used_;
  slot = {key_of(left, right), rank};
}

int32_t MergeTable::rank(int32_t left, int32_t right) const {
  return slots_[slot_of(key_of(left, right))].rank;
}

BpeModel::BpeModel(const std::vector<std::string_view>& tokens, bool ignore_merges)
    : ignore_merges_(ignore_merges), whole_(new std::atomic<uint8_t>[tokens.size()]) {
  std::fill(std::begin(token_of_byte_), std::end(token_of_byte_), -1);
  token_of_bytes_.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    whole_[id].store(kUnknown, std::memory_order_relaxed);
    if (tokens[id].empty()) continue;
    token_of_bytes_.emplace(tokens[id], static_cast<int32_t>(id));
    if (tokens[id].size() == 1) {
      token_of_byte_[static_cast<uint8_t>(tokens[id][0])] = static_cast<int32_t>(id);
    }
  }
}

void BpeModel::add_merge(int32_t left, int32_t right, int32_t result) {
  const size_t rank = result_of_merge_.size();
  FATHOM_ASSERT(rank < static_cast<size_t>(MergeTable::kNoMerge));
  merges_.insert(left, right, static_cast<int32_t>(rank));
  result_of_merge_.push_back(result);
}

int32_t BpeModel::find_token(std::string_view bytes) const {
  const auto found = token_of_bytes_.find(bytes);
  return found == token_of_bytes_.end() ? -1 : found->second;
}

size_t BpeModel::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  const int32_t token = find_token(piece);
  if (token >= 0) {
    const uint8_t whole = whole_[token].load(std::memory_order_relaxed);
    if (ignore_merges_ || whole == kWhole || piece.size() == 1) {
      ids.push_back(token);
      return std::string_view::npos;
    }
  }
  auto& symbols = scratch.symbols;
  const auto n = static_cast<int32_t>(piece.size());
  symbols.resize(piece.size());
  for (int32_t i = 0; i < n; ++i) {
    const int32_t id = token_of_byte_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])];
    if (id < 0) return static_cast<size_t>(i);
    symbols[static_cast<size_t>(i)] = {id, MergeTable::kNoMerge, i + 1 < n ? i + 1 : -1, i - 1};
  }
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    symbols[i].rank = merges_.rank(symbols[i].id, symbols[i + 1].id);
  }
  const size_t first = ids.size();
  if (symbols.size() <= kShortPiece) {
    merge_short(scratch, ids);
  } else {
    merge_long(scratch, ids);
  }
  if (token >= 0) {
    const bool is_whole = ids.size() == first + 1 && ids.back() == token;
    whole_[token].store(is_whole ? kWhole : kSplits, std::memory_order_relaxed);
  }
  return std::string_view::npos;
}

void BpeModel::merge_short(Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols;
  size_t n = symbols.size();
  for (;;) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == MergeTable::kNoMerge) break;
    symbols[best].id = result_of_merge_[static_cast<size_t>(symbols[best].rank)];
    std::copy(symbols.begin() + static_cast<ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<ptrdiff_t>(n),
              symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    --n;
    symbols[best].rank =
        best + 1 < n ? merges_.rank(symbols[best].id, symbols[best + 1].id) : MergeTable::kNoMerge;
    if (best > 0) {
      symbols[best - 1].rank = merges_.rank(symbols[best - 1].id, symbols[best].id);
    }
  }
  for (size_t i = 0; i < n; ++i) ids.push_back(symbols[i].id);
}

// A linked list of symbols and a heap of candidate merges. A candidate is stale, and skipped, when
// its position was merged away (id -1) or now starts another pair (another rank).
void BpeModel::merge_long(Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  const auto at = [&](int32_t i) -> Scratch::Symbol& { return symbols[static_cast<size_t>(i)]; };
  for (size_t i = 0; i < symbols.size(); ++i) {
    if (symbols[i].rank != MergeTable::kNoMerge) {
      heap.push_back({symbols[i].rank, static_cast<int32_t>(i)});
    }
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto look_again = [&](int32_t i) {
    Scratch::Symbol& symbol = at(i);
    symbol.rank =
        symbol.next < 0 ? MergeTable::kNoMerge : merges_.rank(symbol.id, at(symbol.next).id);
    if (symbol.rank == MergeTable::kNoMerge) return;
    heap.push_back({symbol.rank, i});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Scratch::Candidate candidate = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = at(candidate.position);
    if (left.id < 0 || left.rank != candidate.rank) continue;
    Scratch::Symbol& right = at(left.next);
    left.id = result_of_merge_[static_cast<size_t>(candidate.rank)];
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(left.next).prev = candidate.position;
    look_again(candidate.position);
    if (left.prev >= 0) look_again(left.prev);
  }
  for (int32_t i = 0; i >= 0; i = at(i).next) ids.push_back(at(i).id);
}

}  // namespace fathom
