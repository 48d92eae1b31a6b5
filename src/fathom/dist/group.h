// A set of ranks that communicate. All members call the same operations in the same order.
//
// Sums are added in one fixed order, so that the result is the same bits on every member, in every
// run and on every network. A Group of one rank, which needs no World, does nothing and changes
// nothing, so code reads the same for one rank and for many.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "fathom/dist/world.h"

namespace fathom::dist {

enum class SumOrder {
  kRankOrder,  // ((m0 + m1) + m2) + m3
  kTree,       // (m0 + m1) + (m2 + m3); an odd one is carried up
};

class Group {
 public:
  Group() = default;  // this rank alone
  Group(World* world, std::vector<int> ranks);

  int rank() const { return index_; }  // of this process, within the group
  int size() const { return static_cast<int>(ranks_.size()); }
  const std::vector<int>& world_ranks() const { return ranks_; }

  /// As World::observe(), of the world that the group is part of; nothing for one rank alone.
  void observe_world(World::Observer observer) const;
  /// The group of some of the members, of which this process is one.
  Group subset(const std::vector<int>& members) const;

  /// Returns when all members have called it.
  void barrier() const;
  /// From member `root` to all others.
  void broadcast(void* data, int64_t num_bytes, int root) const;
  std::string broadcast(std::string bytes, int root) const;  // any length
  /// all[i * num_bytes ...] = member i's.
  void all_gather(const void* mine, int64_t num_bytes, void* all) const;
  /// Any length each. @return member by member.
  std::vector<std::string> all_gather(std::string_view mine) const;
  /// The members' vectors one behind the other.
  template <typename T>
  std::vector<T> concatenate(const std::vector<T>& mine) const;
  /// To member i goes send[i * num_bytes ...], from it comes recv[i * num_bytes ...].
  void all_to_all(const void* send, void* recv, int64_t num_bytes) const;
  /// Consecutive pieces of given lengths in bytes, which may be 0.
  void all_to_all_v(const void* send, std::span<const int64_t> send_bytes, void* recv,
                    std::span<const int64_t> recv_bytes) const;

  /// Point to point, to and from members of the group. exchange() does several at once.
  void send(int to, const void* data, int64_t num_bytes) const;
  void receive(int from, void* data, int64_t num_bytes) const;
  void exchange(std::span<const Outgoing> out, std::span<const Incoming> in) const;

  /// data[i] becomes the sum over the members, on all of them.
  void sum(float* data, int64_t n, SumOrder order = SumOrder::kRankOrder) const;
  void sum(double* data, int64_t n, SumOrder order = SumOrder::kRankOrder) const;
  /// Pieces, each of which is summed (in rank order) on one member alone. The others' memory is
  /// left as it is. A call's pieces are under way at once: their size bounds the memory it takes.
  struct Piece {
    float* data;
    int64_t n;
    int owner;
  };
  void sum_to_owners(std::span<const Piece> pieces) const;
  /// From each piece's owner to all others.
  void share_from_owners(std::span<const Piece> pieces) const;

 private:
  template <typename T>
  void sum_in_order(T* data, int64_t n, SumOrder order) const;
  void run(std::vector<Outgoing> out, std::vector<Incoming> in, const char* what) const;
  World* world_ = nullptr;
  std::vector<int> ranks_ = {0};
  int index_ = 0;
  uint64_t tag_ = 0;  // tells the groups' messages apart
};

/// sum[i] = the parts' i-th elements added in the order. @param parts member by member.
template <typename T>
void add_in_order(const std::vector<const T*>& parts, int64_t n, SumOrder order, T* sum);

template <typename T>
std::vector<T> Group::concatenate(const std::vector<T>& mine) const {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::vector<std::string> all = all_gather(
      std::string_view(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(T)));
  std::vector<T> result;
  for (const std::string& bytes : all) {
    FATHOM_ASSERT(bytes.size() % sizeof(T) == 0);
    const size_t old = result.size();
    result.resize(old + bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(result.data() + old, bytes.data(), bytes.size());
  }
  return result;
}

}  // namespace fathom::dist
