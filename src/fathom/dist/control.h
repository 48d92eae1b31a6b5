// The control connections: each rank to rank 0's coordinator, which introduces the ranks to one
// another and tells all of them when one has failed.
//
// Frames of 8 bytes and at most kMaxPayload of text behind them:
//   kJoin   rank -> coordinator   the rank's address for data connections
//   kTable  coordinator -> rank   everybody's address, one a line, when all have joined
//   kFail   either way            "rank 2: <message>"; the first one counts
//   kDone   rank -> coordinator   nothing more will come of this rank
//   kAllDone coordinator -> rank  all are done
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fathom/dist/handshake.h"

namespace fathom::dist {

enum class FrameType : uint32_t { kJoin = 1, kTable, kFail, kDone, kAllDone };

struct Frame {
  FrameType type;
  std::string payload;
};

constexpr uint32_t kMaxPayload = 1 << 16;  // beyond it a message is cut, a foreign frame refused

std::string encode_frame(const Frame& frame);
/// Takes one whole frame from the front of `bytes`. @return nothing while there is none.
/// Errors: ConnectionError for a type or length that is none of ours.
std::optional<Frame> take_frame(std::string* bytes);

/// Rank 0's side. Its thread answers strangers' connections and bytes with a closed connection.
class Coordinator {
 public:
  /// @param listener where all ranks connect; @param join_deadline until when all must have.
  Coordinator(Socket listener, std::string secret, int size, Deadline join_deadline);
  ~Coordinator();  // waits for the thread, which ends when all ranks are done or gone
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

 private:
  struct Peer;
  void run();
  void accept_all();
  void read_from(Peer& peer);
  void advance(Peer& peer);
  void handle(Peer& peer, const Frame& frame);
  void lose(Peer& peer);
  void fail(int rank, const std::string& message);
  void send_to_all(const Frame& frame);
  void check_deadlines();
  bool is_over() const;

  Socket listener_;
  std::string secret_;
  int size_;
  Deadline join_deadline_;
  std::vector<std::string> addresses_;  // by rank; empty: not joined
  std::vector<bool> is_done_, is_gone_;
  std::vector<std::unique_ptr<Peer>> peers_;
  bool has_failed_ = false, has_told_table_ = false, has_told_done_ = false;
  Deadline ending_since_;
  std::thread thread_;
};

}  // namespace fathom::dist
