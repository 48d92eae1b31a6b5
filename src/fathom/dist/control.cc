#include "fathom/dist/control.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace fathom::dist {
namespace {

// A connection that has not shown within this time that it belongs to the run is closed.
constexpr auto kHandshakeTime = std::chrono::seconds(5);
constexpr size_t kMaxStrangers = 256;
// How long the coordinator stays for the ranks to hear that all is over.
constexpr auto kFarewellTime = std::chrono::seconds(10);

}  // namespace

std::string encode_frame(const Frame& frame) {
  const auto length = static_cast<uint32_t>(std::min<size_t>(frame.payload.size(), kMaxPayload));
  const auto type = static_cast<uint32_t>(frame.type);
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &type, 4);
  std::memcpy(bytes.data() + 4, &length, 4);
  return bytes.append(frame.payload, 0, length);
}

std::optional<Frame> take_frame(std::string* bytes) {
  if (bytes->size() < 8) return std::nullopt;
  uint32_t type = 0, length = 0;
  std::memcpy(&type, bytes->data(), 4);
  std::memcpy(&length, bytes->data() + 4, 4);
  if (type < 1 || type > static_cast<uint32_t>(FrameType::kAllDone) || length > kMaxPayload) {
    throw ConnectionError(str_cat("a control message of type ", type, " and ", length, " bytes"));
  }
  if (bytes->size() < 8 + size_t{length}) return std::nullopt;
  Frame frame{static_cast<FrameType>(type), bytes->substr(8, length)};
  bytes->erase(0, 8 + size_t{length});
  return frame;
}

/// A connection to the coordinator, from its first byte on.
struct Coordinator::Peer {
  enum class State { kHello, kProof, kJoined, kClosed };
  Socket socket;
  State state = State::kHello;
  Deadline handshake_deadline;
  std::string in, out;
  Proof expected{};
  int rank = -1;  // known once the handshake is through
};

Coordinator::Coordinator(Socket listener, std::string secret, int size, Deadline join_deadline)
    : listener_(std::move(listener)),
      secret_(std::move(secret)),
      size_(size),
      join_deadline_(join_deadline),
      addresses_(static_cast<size_t>(size)),
      is_done_(static_cast<size_t>(size)),
      is_gone_(static_cast<size_t>(size)),
      ending_since_(join_deadline),
      thread_([this] { run(); }) {}

Coordinator::~Coordinator() { thread_.join(); }

bool Coordinator::is_over() const {
  const bool all_gone = std::all_of(is_gone_.begin(), is_gone_.end(), [](bool b) { return b; });
  const bool is_ending = has_failed_ || has_told_done_;
  return all_gone || (is_ending && Clock::now() > ending_since_ + kFarewellTime);
}

void Coordinator::run() {
  while (!is_over()) {
    std::vector<pollfd> entries = {{listener_.fd(), POLLIN, 0}};
    for (const auto& peer : peers_) {
      const short events = static_cast<short>(peer->out.empty() ? POLLIN : POLLIN | POLLOUT);
      entries.push_back({peer->socket.fd(), events, 0});
    }
    if (::poll(entries.data(), entries.size(), 200) < 0 && errno != EINTR) return;
    for (size_t i = 1; i < entries.size(); ++i) {
      Peer& peer = *peers_[i - 1];
      if ((entries[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0) read_from(peer);
    }
    // A failure while reading may have given anyone something to send.
    for (const auto& peer : peers_) {
      if (peer->state == Peer::State::kClosed || peer->out.empty()) continue;
      const ssize_t n = ::send(peer->socket.fd(), peer->out.data(), peer->out.size(),
                               MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) peer->out.erase(0, static_cast<size_t>(n));
    }
    if ((entries[0].revents & POLLIN) != 0) accept_all();
    check_deadlines();
    std::erase_if(peers_, [](const auto& peer) { return peer->state == Peer::State::kClosed; });
  }
}

void Coordinator::accept_all() {
  while (true) {
    Socket socket(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.is_open()) return;
    if (peers_.size() >= static_cast<size_t>(size_) + kMaxStrangers) continue;  // closes it
    const int on = 1;
    ::setsockopt(socket.fd(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    auto peer = std::make_unique<Peer>();
    peer->socket = std::move(socket);
    peer->handshake_deadline = Clock::now() + kHandshakeTime;
    peers_.push_back(std::move(peer));
  }
}

void Coordinator::read_from(Peer& peer) {
  char buffer[4096];
  while (peer.state != Peer::State::kClosed) {
    const ssize_t n = ::recv(peer.socket.fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return lose(peer);
    peer.in.append(buffer, static_cast<size_t>(n));
    try {
      advance(peer);
    } catch (const ConnectionError&) {
      lose(peer);
    }
  }
}

void Coordinator::advance(Peer& peer) {
  if (peer.state == Peer::State::kHello && peer.in.size() >= sizeof(Hello)) {
    Hello hello;
    std::memcpy(&hello, peer.in.data(), sizeof hello);
    peer.in.erase(0, sizeof hello);
    if (!is_valid_hello(hello, size_, kControl)) return lose(peer);
    const Reply reply = make_reply(secret_, hello);
    peer.expected = make_proof(secret_, hello, reply.nonce);
    peer.out.append(reinterpret_cast<const char*>(&reply), sizeof reply);
    peer.rank = static_cast<int>(hello.rank);
    peer.state = Peer::State::kProof;
  }
  if (peer.state == Peer::State::kProof && peer.in.size() >= sizeof(Proof)) {
    Proof proof;
    std::memcpy(proof.data(), peer.in.data(), sizeof proof);
    peer.in.erase(0, sizeof proof);
    // A second process that says it is the same rank is refused like a stranger.
    const bool is_taken = !addresses_[static_cast<size_t>(peer.rank)].empty();
    if (!is_same(proof, peer.expected) || is_taken) return lose(peer);
    peer.state = Peer::State::kJoined;
  }
  while (peer.state == Peer::State::kJoined) {
    const std::optional<Frame> frame = take_frame(&peer.in);
    if (!frame) return;
    handle(peer, *frame);
  }
}

void Coordinator::handle(Peer& peer, const Frame& frame) {
  const auto rank = static_cast<size_t>(peer.rank);
  switch (frame.type) {
    case FrameType::kJoin: {
      addresses_[rank] = frame.payload;
      const bool all = std::none_of(addresses_.begin(), addresses_.end(),
                                    [](const std::string& a) { return a.empty(); });
      if (!all || has_told_table_) return;
      has_told_table_ = true;
      std::string table;
      for (const std::string& address : addresses_) table += address + "\n";
      return send_to_all({FrameType::kTable, table});
    }
    case FrameType::kFail:
      return fail(peer.rank, frame.payload);
    case FrameType::kDone: {
      is_done_[rank] = true;
      const bool all = std::all_of(is_done_.begin(), is_done_.end(), [](bool b) { return b; });
      if (!all || has_told_done_) return;
      has_told_done_ = true;
      ending_since_ = Clock::now();
      return send_to_all({FrameType::kAllDone, ""});
    }
    case FrameType::kTable:
    case FrameType::kAllDone:
      return lose(peer);  // a rank does not say this
  }
}

void Coordinator::lose(Peer& peer) {
  const bool was_rank = peer.state == Peer::State::kJoined;
  peer.state = Peer::State::kClosed;
  peer.socket.shut_down();
  if (!was_rank) return;
  is_gone_[static_cast<size_t>(peer.rank)] = true;
  if (!has_told_done_ && !has_failed_) {
    fail(peer.rank, str_cat("rank ", peer.rank, " has died (its connection was lost)"));
  }
}

void Coordinator::fail(int rank, const std::string& message) {
  if (has_failed_) return;
  has_failed_ = true;
  ending_since_ = Clock::now();
  for (const auto& peer : peers_) {
    if (peer->state != Peer::State::kJoined || peer->rank == rank) continue;
    peer->out += encode_frame({FrameType::kFail, message});
  }
  // Ranks that never came will not go either.
  for (size_t r = 0; r < addresses_.size(); ++r) {
    if (addresses_[r].empty()) is_gone_[r] = true;
  }
}

void Coordinator::send_to_all(const Frame& frame) {
  for (const auto& peer : peers_) {
    if (peer->state == Peer::State::kJoined) peer->out += encode_frame(frame);
  }
}

void Coordinator::check_deadlines() {
  const Deadline now = Clock::now();
  for (const auto& peer : peers_) {
    const bool is_stranger =
        peer->state == Peer::State::kHello || peer->state == Peer::State::kProof;
    if (is_stranger && now > peer->handshake_deadline) lose(*peer);
  }
  if (has_told_table_ || has_failed_ || now < join_deadline_) return;
  std::string missing;
  for (size_t r = 0; r < addresses_.size(); ++r) {
    if (addresses_[r].empty()) missing += str_cat(missing.empty() ? "" : ", ", r);
  }
  fail(-1, str_cat("the ranks that did not come in time: ", missing, " of ", size_));
}

}  // namespace fathom::dist
