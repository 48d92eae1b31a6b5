#include "fathom/dist/group.h"

#include <algorithm>

#include "fathom/base/hash.h"

namespace fathom::dist {
namespace {

/// Members' borders in [0, n): member i sums [border(i), border(i + 1)).
int64_t border(int64_t n, int i, int size) { return n * i / size; }

constexpr int64_t kBlock = 1024;  // elements that are added at a time

/// values[0] = the blocks added level by level, in place; the order depends on their number alone.
template <typename T>
void add_tree(std::vector<T>* values, int64_t n) {
  const auto block = [&](size_t i) { return values->data() + i * kBlock; };
  for (size_t count = values->size() / kBlock; count > 1; count = (count + 1) / 2) {
    for (size_t i = 0; 2 * i < count; ++i) {
      const T* left = block(2 * i);
      if (2 * i + 1 == count) {
        std::copy_n(left, n, block(i));
        continue;
      }
      const T* right = block(2 * i + 1);
      for (int64_t k = 0; k < n; ++k) block(i)[k] = left[k] + right[k];
    }
  }
}

}  // namespace

template <typename T>
void add_in_order(const std::vector<const T*>& parts, int64_t n, SumOrder order, T* sum) {
  // By blocks, because `sum` may be one of the parts.
  if (order == SumOrder::kTree) {
    std::vector<T> values(parts.size() * kBlock);
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t count = std::min(kBlock, n - begin);
      for (size_t p = 0; p < parts.size(); ++p) {
        std::copy_n(parts[p] + begin, count, values.data() + p * kBlock);
      }
      add_tree(&values, count);
      std::copy_n(values.data(), count, sum + begin);
    }
    return;
  }
  T total[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    std::copy_n(parts[0] + begin, count, total);
    for (size_t p = 1; p < parts.size(); ++p) {
      for (int64_t i = 0; i < count; ++i) total[i] += parts[p][begin + i];
    }
    std::copy_n(total, count, sum + begin);
  }
}
template void add_in_order(const std::vector<const float*>&, int64_t, SumOrder, float*);
template void add_in_order(const std::vector<const double*>&, int64_t, SumOrder, double*);

Group::Group(World* world, std::vector<int> ranks) : world_(world), ranks_(std::move(ranks)) {
  const auto mine = std::find(ranks_.begin(), ranks_.end(), world->rank());
  FATHOM_ASSERT(mine != ranks_.end(), "rank ", world->rank(), " is no member of the group");
  index_ = static_cast<int>(mine - ranks_.begin());
  for (int r : ranks_) tag_ = mix64(tag_, static_cast<uint64_t>(r));
}

Group Group::subset(const std::vector<int>& members) const {
  if (world_ == nullptr) return {};
  std::vector<int> ranks;
  for (int m : members) ranks.push_back(ranks_.at(static_cast<size_t>(m)));
  return {world_, std::move(ranks)};
}

void Group::run(std::vector<Outgoing> out, std::vector<Incoming> in, const char* what) const {
  if (world_ == nullptr) {
    FATHOM_ASSERT(out.empty() && in.empty());
    return;
  }
  for (Outgoing& o : out) o.rank = ranks_[static_cast<size_t>(o.rank)];
  for (Incoming& i : in) i.rank = ranks_[static_cast<size_t>(i.rank)];
  uint64_t tag = tag_;
  for (const char* c = what; *c != '\0'; ++c) tag = mix64(tag, static_cast<uint64_t>(*c));
  world_->exchange(out, in, tag, what);
}

void Group::observe_world(World::Observer observer) const {
  if (world_ != nullptr) world_->observe(std::move(observer));
}

void Group::barrier() const {
  if (size() == 1) return;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int i = 0; i < size(); ++i) {
    if (i == index_) continue;
    out.push_back({i, nullptr, 0});
    in.push_back({i, nullptr, 0});
  }
  run(std::move(out), std::move(in), "barrier");
}

void Group::broadcast(void* data, int64_t num_bytes, int root) const {
  if (size() == 1) return;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  if (index_ == root) {
    for (int i = 0; i < size(); ++i) {
      if (i != root) out.push_back({i, data, num_bytes});
    }
  } else {
    in.push_back({root, data, num_bytes});
  }
  run(std::move(out), std::move(in), "broadcast");
}

std::string Group::broadcast(std::string bytes, int root) const {
  auto length = static_cast<int64_t>(bytes.size());
  broadcast(&length, sizeof length, root);
  bytes.resize(static_cast<size_t>(length));
  broadcast(bytes.data(), length, root);
  return bytes;
}

void Group::all_gather(const void* mine, int64_t num_bytes, void* all) const {
  char* to = static_cast<char*>(all);
  if (num_bytes > 0) {
    std::memmove(to + index_ * num_bytes, mine, static_cast<size_t>(num_bytes));
  }
  if (size() == 1) return;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int i = 0; i < size(); ++i) {
    if (i == index_) continue;
    out.push_back({i, mine, num_bytes});
    in.push_back({i, to + i * num_bytes, num_bytes});
  }
  run(std::move(out), std::move(in), "all_gather");
}

std::vector<std::string> Group::all_gather(std::string_view mine) const {
  std::vector<int64_t> lengths(static_cast<size_t>(size()));
  const auto length = static_cast<int64_t>(mine.size());
  all_gather(&length, sizeof length, lengths.data());
  std::vector<std::string> all(lengths.size());
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int i = 0; i < size(); ++i) {
    std::string& to = all[static_cast<size_t>(i)];
    if (i == index_) {
      to = mine;
      continue;
    }
    to.resize(static_cast<size_t>(lengths[static_cast<size_t>(i)]));
    out.push_back({i, mine.data(), length});
    in.push_back({i, to.data(), static_cast<int64_t>(to.size())});
  }
  run(std::move(out), std::move(in), "all_gather of any lengths");
  return all;
}

void Group::all_to_all(const void* send, void* recv, int64_t num_bytes) const {
  const std::vector<int64_t> lengths(static_cast<size_t>(size()), num_bytes);
  all_to_all_v(send, lengths, recv, lengths);
}

void Group::all_to_all_v(const void* send, std::span<const int64_t> send_bytes, void* recv,
                         std::span<const int64_t> recv_bytes) const {
  FATHOM_ASSERT(send_bytes.size() == ranks_.size() && recv_bytes.size() == ranks_.size());
  const char* from = static_cast<const char*>(send);
  char* to = static_cast<char*>(recv);
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  const char* own_from = nullptr;
  char* own_to = nullptr;
  for (int i = 0; i < size(); ++i) {
    const auto at = static_cast<size_t>(i);
    if (i == index_) {
      own_from = from;
      own_to = to;
    } else {
      out.push_back({i, from, send_bytes[at]});
      in.push_back({i, to, recv_bytes[at]});
    }
    from += send_bytes[at];
    to += recv_bytes[at];
  }
  const int64_t own = send_bytes[static_cast<size_t>(index_)];
  FATHOM_ASSERT(own == recv_bytes[static_cast<size_t>(index_)]);
  if (own > 0) std::memmove(own_to, own_from, static_cast<size_t>(own));
  if (size() > 1) run(std::move(out), std::move(in), "all_to_all");
}

void Group::send(int to, const void* data, int64_t num_bytes) const {
  run({{to, data, num_bytes}}, {}, "point to point");
}
void Group::receive(int from, void* data, int64_t num_bytes) const {
  run({}, {{from, data, num_bytes}}, "point to point");
}
void Group::exchange(std::span<const Outgoing> out, std::span<const Incoming> in) const {
  run({out.begin(), out.end()}, {in.begin(), in.end()}, "point to point");
}

template <typename T>
void Group::sum_in_order(T* data, int64_t n, SumOrder order) const {
  if (size() == 1) return;
  // Each member sums one slice of all and hands it round. Slices bound nothing but who adds.
  const int64_t begin = border(n, index_, size()), end = border(n, index_ + 1, size());
  std::vector<std::vector<T>> received(static_cast<size_t>(size()));
  std::vector<const T*> parts;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  const auto bytes = [](int64_t count) { return count * static_cast<int64_t>(sizeof(T)); };
  for (int i = 0; i < size(); ++i) {
    std::vector<T>& part = received[static_cast<size_t>(i)];
    if (i == index_) {
      parts.push_back(data + begin);
      continue;
    }
    part.resize(static_cast<size_t>(end - begin));
    parts.push_back(part.data());
    const int64_t other = border(n, i, size());
    out.push_back({i, data + other, bytes(border(n, i + 1, size()) - other)});
    in.push_back({i, part.data(), bytes(end - begin)});
  }
  run(std::move(out), std::move(in), "sum");
  add_in_order(parts, end - begin, order, data + begin);
  out.clear();
  in.clear();
  for (int i = 0; i < size(); ++i) {
    if (i == index_) continue;
    const int64_t other = border(n, i, size());
    out.push_back({i, data + begin, bytes(end - begin)});
    in.push_back({i, data + other, bytes(border(n, i + 1, size()) - other)});
  }
  run(std::move(out), std::move(in), "sum, handed round");
}

void Group::sum(float* data, int64_t n, SumOrder order) const { sum_in_order(data, n, order); }
void Group::sum(double* data, int64_t n, SumOrder order) const { sum_in_order(data, n, order); }

void Group::sum_to_owners(std::span<const Piece> pieces) const {
  if (size() == 1) return;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  std::vector<std::vector<float>> received;  // of one own piece after the other, member by member
  for (const Piece& piece : pieces) {
    const int64_t bytes = piece.n * static_cast<int64_t>(sizeof(float));
    if (piece.owner != index_) {
      out.push_back({piece.owner, piece.data, bytes});
      continue;
    }
    for (int i = 0; i < size(); ++i) {
      if (i == index_) continue;
      received.emplace_back(static_cast<size_t>(piece.n));
      in.push_back({i, received.back().data(), bytes});
    }
  }
  run(std::move(out), std::move(in), "sum to owners");
  size_t next = 0;
  for (const Piece& piece : pieces) {
    if (piece.owner != index_) continue;
    std::vector<const float*> parts;
    for (int i = 0; i < size(); ++i) {
      parts.push_back(i == index_ ? piece.data : received[next++].data());
    }
    add_in_order(parts, piece.n, SumOrder::kRankOrder, piece.data);
  }
}

void Group::share_from_owners(std::span<const Piece> pieces) const {
  if (size() == 1) return;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (const Piece& piece : pieces) {
    const int64_t bytes = piece.n * static_cast<int64_t>(sizeof(float));
    if (piece.owner != index_) {
      in.push_back({piece.owner, piece.data, bytes});
      continue;
    }
    for (int i = 0; i < size(); ++i) {
      if (i != index_) out.push_back({i, piece.data, bytes});
    }
  }
  run(std::move(out), std::move(in), "share from owners");
}

}  // namespace fathom::dist
