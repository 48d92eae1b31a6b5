#include "fathom/rollout/prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fathom/base/error.h"

namespace fathom {

struct PrefixCache::Node {
  Node* parent = nullptr;
  std::vector<int32_t> tokens;
  std::map<std::vector<int32_t>, std::unique_ptr<Node>> children;
  HistoryPage page;
  StateBlock checkpoint;
  Piece replay;  // may be null; routes of the page's tokens, then picks
  uint64_t last_use = 0;
};

PrefixCache::PrefixCache(std::shared_ptr<StateSpace> space, int64_t max_pages)
    : space_(std::move(space)), max_pages_(max_pages), root_(std::make_unique<Node>()) {}

PrefixCache::~PrefixCache() { clear(); }

std::vector<PrefixCache::Node*> PrefixCache::find(std::span<const int32_t> tokens,
                                                  int64_t max_tokens, bool with_replay) const {
  std::vector<Node*> path;
  const int64_t page = space_->layout.page_size;
  const int64_t end = std::min(max_tokens, static_cast<int64_t>(tokens.size()));
  Node* node = root_.get();
  std::vector<int32_t> key;
  for (int64_t at = 0; at + page <= end; at += page) {
    key.assign(tokens.begin() + at, tokens.begin() + at + page);
    const auto found = node->children.find(key);
    if (found == node->children.end()) break;
    node = found->second.get();
    if (with_replay && node->replay == nullptr) break;
    path.push_back(node);
  }
  return path;
}

int64_t PrefixCache::cached_tokens(std::span<const int32_t> tokens, int64_t max_tokens,
                                   bool with_replay) const {
  return static_cast<int64_t>(find(tokens, max_tokens, with_replay).size()) *
         space_->layout.page_size;
}

void PrefixCache::touch(Node* node) {
  const bool is_leaf = node->children.empty();
  if (is_leaf) leaves_.erase(node->last_use);
  node->last_use = ++clock_;
  if (is_leaf) leaves_[node->last_use] = node;
}

std::unique_ptr<SequenceState> PrefixCache::resume(std::span<const int32_t> tokens,
                                                   int64_t max_tokens, ReplayRecord* replay) {
  counters_.num_asked_tokens += static_cast<int64_t>(tokens.size());
  const std::vector<Node*> path = find(tokens, max_tokens, replay != nullptr);
  std::unique_ptr<SequenceState> state;
  if (!path.empty()) {
    std::vector<const HistoryPage*> pages;
    for (Node* node : path) {
      touch(node);
      pages.push_back(&node->page);
    }
    state = SequenceState::resume(space_, pages, path.back()->checkpoint);
  }
  if (state == nullptr) {
    ++counters_.num_misses;
    return nullptr;
  }
  ++counters_.num_hits;
  counters_.num_hit_tokens += state->num_tokens();
  if (replay != nullptr) read_replay(path, replay);
  return state;
}

void PrefixCache::insert(std::span<const int32_t> tokens, const SequenceState& state,
                         StateBlock checkpoint, const ReplayRecord* replay) {
  const int64_t page = space_->layout.page_size, length = static_cast<int64_t>(tokens.size());
  FATHOM_ASSERT(length > 0 && length % page == 0 && checkpoint, length, " tokens on pages of ",
                page);
  while (max_pages_ > 0 && num_pages_ >= max_pages_) evict_one();
  const std::vector<Node*> path = find(tokens, length - page, /*with_replay=*/false);
  if (static_cast<int64_t>(path.size()) * page != length - page) return;
  Node* parent = path.empty() ? root_.get() : path.back();
  std::vector<int32_t> key(tokens.end() - page, tokens.end());
  std::unique_ptr<Node>& place = parent->children[key];
  if (place == nullptr) {
    if (parent != root_.get()) leaves_.erase(parent->last_use);
    place = std::make_unique<Node>();
    place->parent = parent;
    place->tokens = std::move(key);
    place->page = state.page(length / page - 1);
    place->checkpoint = std::move(checkpoint);
    ++num_pages_;
  }
  touch(place.get());
  if (replay != nullptr && place->replay == nullptr) {
    write_replay(place.get(), length / page - 1, *replay);
  }
}

bool PrefixCache::evict_one() {
  if (leaves_.empty()) return false;
  Node* node = leaves_.begin()->second;
  leaves_.erase(leaves_.begin());
  Node* parent = node->parent;
  const std::vector<int32_t> key = node->tokens;
  parent->children.erase(key);
  if (parent != root_.get() && parent->children.empty()) leaves_[parent->last_use] = parent;
  --num_pages_;
  ++counters_.num_evictions;
  return true;
}

void PrefixCache::clear() {
  leaves_.clear();
  // Without recursion: a chain may be as deep as a sequence is long.
  std::vector<std::unique_ptr<Node>> doomed;
  doomed.push_back(std::exchange(root_, std::make_unique<Node>()));
  while (!doomed.empty()) {
    const std::unique_ptr<Node> node = std::move(doomed.back());
    doomed.pop_back();
    for (auto& [key, child] : node->children) doomed.push_back(std::move(child));
  }
  num_pages_ = 0;
}

void PrefixCache::write_replay(Node* node, int64_t page, const ReplayRecord& r) {
  Piece piece = space_->pools.acquire(space_->layout.replay_kind);
  if (piece == nullptr) return;
  const int64_t P = space_->layout.page_size, begin = page * P;
  auto* out = reinterpret_cast<int32_t*>(piece.get());
  const auto copy = [&](const std::vector<int32_t>& rows, int64_t width) {
    if (width == 0) return true;
    if (static_cast<int64_t>(rows.size()) < (begin + P) * width) return false;
    std::memcpy(out, rows.data() + begin * width, static_cast<size_t>(P * width) * sizeof(int32_t));
    out += P * width;
    return true;
  };
  if (copy(r.routes, r.num_layers * r.num_slots) &&
      copy(r.picks, r.num_indexer_layers * r.index_topk)) {
    node->replay = std::move(piece);
  }
}

void PrefixCache::read_replay(const std::vector<Node*>& path, ReplayRecord* r) const {
  const int64_t P = space_->layout.page_size;
  const auto copy = [&](const int32_t* rows, int64_t width, size_t page,
                        std::vector<int32_t>* out) {
    if (width == 0) return rows;
    out->resize(static_cast<size_t>(static_cast<int64_t>(path.size()) * P * width));
    std::memcpy(out->data() + static_cast<int64_t>(page) * P * width, rows,
                static_cast<size_t>(P * width) * sizeof(int32_t));
    return rows + P * width;
  };
  for (size_t i = 0; i < path.size(); ++i) {
    const auto* rows = reinterpret_cast<const int32_t*>(path[i]->replay.get());
    rows = copy(rows, r->num_layers * r->num_slots, i, &r->routes);
    copy(rows, r->num_indexer_layers * r->index_topk, i, &r->picks);
  }
}

}  // namespace fathom
