// All ranks of a run. They meet at rank 0, connect pair by pair, work in groups and end together.
//
//   auto world = World::join(rank_environment(current_environment()), {});
//   try {
//     const Group everyone = world->everyone();
//     everyone.sum(gradients, n);
//     world->finish();                  // all ranks come here
//   } catch (const std::exception& e) {
//     world->fail(e.what());            // all ranks throw PeerFailure with this message
//     throw;
//   }
//
// Use from one thread at a time. Every wait has a time limit.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/dist/rank_environment.h"

namespace fathom::dist {

class Group;

/// Another rank has failed; the message names it. This rank has nothing to add.
class PeerFailure : public UserError {
 public:
  using UserError::UserError;
};

struct WorldOptions {
  std::chrono::milliseconds join_timeout{300'000};
  std::chrono::milliseconds operation_timeout{600'000};  // of one message or collective
  /// Called on another thread when this rank, after a failure elsewhere, has not come to an end
  /// within exit_grace, for instance because it computes for long. A program ends itself in it.
  std::function<void(const std::string& message)> on_stuck;
  std::chrono::milliseconds exit_grace{5'000};
};

/// What this rank has sent and how long it has waited in messages and collectives.
struct Traffic {
  int64_t bytes_sent = 0, num_operations = 0;
  double seconds = 0.0;
};

/// Bytes to or from one rank.
struct Outgoing {
  int rank;
  const void* data;
  int64_t num_bytes;
};
struct Incoming {
  int rank;
  void* data;
  int64_t num_bytes;
};

class World {
 public:
  /// Blocks until all ranks are connected. With one rank nothing is opened.
  /// Errors: ConfigError without a port to meet at, ConnectionError (address, secret, time),
  /// PeerFailure.
  static std::unique_ptr<World> join(const RankEnvironment& environment,
                                     const WorldOptions& options);
  /// Without finish() or fail() before it, the others learn that this rank has ended early.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const;
  int size() const;
  Group everyone();
  /// @param ranks ascending or not, each at most once, this rank among them; the same list, in the
  /// same order, on all of them.
  Group group(std::vector<int> ranks);

  /// Tells the others, who throw PeerFailure at their next or present wait. The first failure of
  /// the world counts. `message` gets "rank R: " in front.
  void fail(const std::string& message) noexcept;
  /// Waits until all ranks are here. Errors: PeerFailure, ConnectionError.
  void finish();

  /// Sends and receives all at once, so that no order of waiting can block ranks on one another.
  /// Messages of a pair keep their order; the tag and the length of each must be what the other
  /// side expects.
  /// @param what names the operation in messages, "all_gather".
  /// Errors: PeerFailure; UserError when the sides disagree or the time is up, with the ranks that
  /// were waited for.
  void exchange(std::span<const Outgoing> out, std::span<const Incoming> in, uint64_t tag,
                const char* what);

  Traffic traffic() const;
  /// Told of every message and collective of more than one rank, after it. Null: nobody.
  using Observer = std::function<void(const char* what, int64_t bytes_sent,
                                      std::chrono::steady_clock::time_point begin,
                                      std::chrono::steady_clock::time_point end)>;
  void observe(Observer observer);

 private:
  struct Impl;
  explicit World(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom::dist
