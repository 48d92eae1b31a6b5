#include "fathom/dist/world.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "fathom/dist/control.h"
#include "fathom/dist/group.h"

namespace fathom::dist {
namespace {

// To an address that another rank has just told: long for a network, short for a person.
constexpr auto kConnectTime = std::chrono::seconds(20);
// How long a broken data connection waits for the coordinator to say whose fault it is.
constexpr auto kReasonTime = std::chrono::seconds(3);
constexpr uint32_t kMessageMagic = 0x314D4846;  // "FHM1"

struct MessageHeader {
  uint32_t magic, sequence;
  uint64_t tag;
  int64_t num_bytes;
};
static_assert(sizeof(MessageHeader) == 24);

/// One direction of one pair within an exchange: messages one after another.
struct Transfer {
  struct Piece {
    char* data;
    int64_t left;
    bool is_header;
  };
  std::deque<Piece> pieces;
  std::deque<MessageHeader> headers;  // to be sent, or what must come
  MessageHeader got{};
  bool is_done() const { return pieces.empty(); }
};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    lines.push_back(text.substr(begin, end - begin));
  return lines;
}

Address parse_address(const std::string& text) {
  const size_t colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  FATHOM_CHECK(colon != std::string::npos, "a rank told the address '", text, "'");
  return {host, std::atoi(text.c_str() + colon + 1)};
}

}  // namespace

struct World::Impl {
  RankEnvironment environment;
  WorldOptions options;
  std::unique_ptr<Coordinator> coordinator;  // rank 0
  Socket control;
  std::string control_bytes;
  std::vector<Socket> data;  // by rank
  std::vector<uint32_t> sent, received;
  Traffic traffic;
  Observer observer;
  bool is_over = false;  // finished, or has told its failure

  std::thread watcher;
  Socket wake;  // eventfd, ends the watcher
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<std::string> failure;  // of another rank
  bool all_done = false, is_closing = false;

  void send_control(const Frame& frame, Deadline deadline) {
    const std::string bytes = encode_frame(frame);
    send_all(control, bytes.data(), static_cast<int64_t>(bytes.size()), deadline,
             "a message to rank 0");
  }

  /// Reads what is there. @return false when the connection is gone.
  bool read_control() {
    char buffer[4096];
    while (true) {
      const ssize_t n = ::recv(control.fd(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (n > 0) {
        control_bytes.append(buffer, static_cast<size_t>(n));
      } else if (n < 0 && errno == EAGAIN) {
        return true;
      } else if (n == 0 || errno != EINTR) {
        return false;
      }
    }
  }

  [[noreturn]] void rank_0_is_gone() const {
    throw PeerFailure("rank 0 has died (its connection was lost)");
  }

  /// While joining, on the thread that joins. @return the frame of that type, if it is there.
  std::optional<Frame> poll_frame(FrameType wanted) {
    const bool is_alive = read_control();
    while (std::optional<Frame> frame = take_frame(&control_bytes)) {
      if (frame->type == FrameType::kFail) throw PeerFailure(frame->payload);
      if (frame->type == wanted) return frame;
    }
    if (!is_alive) rank_0_is_gone();
    return std::nullopt;
  }

  void connect_control(Deadline deadline) {
    const Address master = {environment.master_host, environment.master_port};
    if (environment.rank == 0) {
      Socket listener =
          environment.listen_fd >= 0 ? Socket(environment.listen_fd) : listen_on(master);
      coordinator = std::make_unique<Coordinator>(std::move(listener), environment.secret,
                                                  environment.size, deadline);
    }
    with_context(str_cat("rank ", environment.rank, " cannot join rank 0 at ", master.text()), [&] {
      control = connect_to(master, deadline);
      shake_hands_as_client(control, environment.secret, environment.rank, environment.size,
                            kControl, std::min(deadline, Clock::now() + kConnectTime));
    });
  }

  void connect_data(Deadline deadline) {
    const int rank = environment.rank, size = environment.size;
    const Socket listener = listen_on({local_address(control).host, 0});
    send_control({FrameType::kJoin, local_address(listener).text()}, deadline);
    std::optional<Frame> table;
    while (!(table = poll_frame(FrameType::kTable))) {
      wait_for_events(control.fd(), POLLIN, Clock::now() + std::chrono::milliseconds(500));
      // The coordinator gives up first and says who is missing.
      if (Clock::now() > deadline + std::chrono::seconds(10)) rank_0_is_gone();
    }
    const std::vector<std::string> addresses = lines_of(table->payload);
    FATHOM_CHECK(static_cast<int>(addresses.size()) == size, "rank 0 told of ", addresses.size(),
                 " ranks, there are ", size);
    data.resize(static_cast<size_t>(size));
    for (int other = 0; other < rank; ++other) {
      const Address address = parse_address(addresses[static_cast<size_t>(other)]);
      with_context(str_cat("rank ", rank, " cannot reach rank ", other), [&] {
        Socket socket = connect_to(address, Clock::now() + kConnectTime);
        shake_hands_as_client(socket, environment.secret, rank, size, kData,
                              Clock::now() + kConnectTime);
        data[static_cast<size_t>(other)] = std::move(socket);
      });
    }
    for (int missing = size - 1 - rank; missing > 0;) {
      Socket socket = accept_one(listener, Clock::now() + std::chrono::milliseconds(200));
      poll_frame(FrameType::kTable);
      FATHOM_CHECK(Clock::now() < deadline + kConnectTime, "rank ", rank, ": ", missing,
                   " ranks did not connect in time");
      if (!socket.is_open()) continue;
      const int other = shake_hands_as_server(socket, environment.secret, size, kData,
                                              Clock::now() + std::chrono::seconds(5));
      if (other <= rank || data[static_cast<size_t>(other)].is_open()) continue;
      data[static_cast<size_t>(other)] = std::move(socket);
      --missing;
    }
    sent.assign(static_cast<size_t>(size), 0);
    received.assign(static_cast<size_t>(size), 0);
  }

  void watch() {
    bool is_alive = true;
    while (true) {
      pollfd entries[] = {{control.fd(), POLLIN, 0}, {wake.fd(), POLLIN, 0}};
      ::poll(entries, 2, 1000);
      if ((entries[1].revents & POLLIN) != 0) return;
      is_alive = read_control();
      std::lock_guard lock(mutex);
      try {
        while (std::optional<Frame> frame = take_frame(&control_bytes)) {
          if (frame->type == FrameType::kFail && !failure) failure = frame->payload;
          if (frame->type == FrameType::kAllDone) all_done = true;
        }
      } catch (const ConnectionError& e) {
        if (!failure) failure = str_cat("rank 0 sent ", e.what());
      }
      if (!is_alive && !all_done && !failure) {
        failure = "rank 0 has died (its connection was lost)";
      }
      changed.notify_all();
      if (failure || !is_alive) break;
    }
    for (const Socket& socket : data) socket.shut_down();
    std::unique_lock lock(mutex);
    if (!failure || !options.on_stuck) return;
    if (!changed.wait_for(lock, options.exit_grace, [&] { return is_closing; })) {
      options.on_stuck(*failure);
    }
  }

  /// The connection to `peer` is broken: that is nearly always because some rank has failed.
  [[noreturn]] void throw_failure(int peer) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, kReasonTime, [&] { return failure.has_value(); });
    throw PeerFailure(failure ? *failure
                              : str_cat("rank ", peer, " has died (its connection was lost)"));
  }
  void throw_if_failed() {
    std::lock_guard lock(mutex);
    if (failure) throw PeerFailure(*failure);
  }

  void close() {
    {
      std::lock_guard lock(mutex);
      is_closing = true;
    }
    changed.notify_all();
    if (watcher.joinable()) {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = ::write(wake.fd(), &one, sizeof one);
      watcher.join();
    }
    data.clear();
    control = Socket();
    coordinator.reset();
  }
};

World::World(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

std::unique_ptr<World> World::join(const RankEnvironment& environment,
                                   const WorldOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->environment = environment;
  impl->options = options;
  std::unique_ptr<World> world(new World(std::move(impl)));
  Impl& w = *world->impl_;
  if (environment.size == 1) return world;
  if (environment.master_port < 1 || environment.master_port > 65'535) {
    throw ConfigError(str_cat("MASTER_PORT is ", environment.master_port, ": the ",
                              environment.size,
                              " ranks need a port on rank 0's host to meet\n  fix: set MASTER_ADDR "
                              "and MASTER_PORT, the same for all ranks"));
  }
  try {
    const Deadline deadline = Clock::now() + options.join_timeout;
    w.connect_control(deadline);
    w.connect_data(deadline);
  } catch (const std::exception& e) {
    world->fail(e.what());
    throw;
  }
  w.wake = Socket(::eventfd(0, EFD_CLOEXEC));
  w.watcher = std::thread([&w] { w.watch(); });
  return world;
}

World::~World() {
  if (size() > 1 && !impl_->is_over) fail("ended before the others");
  impl_->close();
}

int World::rank() const { return impl_->environment.rank; }
int World::size() const { return impl_->environment.size; }

Group World::everyone() {
  std::vector<int> ranks(static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) ranks[static_cast<size_t>(r)] = r;
  return group(std::move(ranks));
}

Group World::group(std::vector<int> ranks) { return Group(this, std::move(ranks)); }

void World::fail(const std::string& message) noexcept {
  if (impl_->is_over || !impl_->control.is_open()) return;
  impl_->is_over = true;
  try {
    impl_->send_control({FrameType::kFail, str_cat("rank ", rank(), ": ", message)},
                        Clock::now() + std::chrono::seconds(2));
  } catch (const std::exception&) {
    // Nobody is left to tell; the others see the connection close.
  }
}

void World::finish() {
  if (size() == 1) return;
  impl_->throw_if_failed();
  impl_->send_control({FrameType::kDone, ""}, Clock::now() + kConnectTime);
  std::unique_lock lock(impl_->mutex);
  const bool in_time = impl_->changed.wait_for(lock, impl_->options.operation_timeout, [&] {
    return impl_->all_done || impl_->failure.has_value();
  });
  if (impl_->failure) throw PeerFailure(*impl_->failure);
  FATHOM_CHECK(in_time, "rank ", rank(), " has finished and waited in vain for the others");
  impl_->is_over = true;
}

Traffic World::traffic() const { return impl_->traffic; }

void World::observe(Observer observer) { impl_->observer = std::move(observer); }

namespace {

/// The state of one exchange: what is still to be sent and received.
class Exchange {
 public:
  Exchange(std::vector<uint32_t>& sent, std::vector<uint32_t>& received, int rank, uint64_t tag,
           const char* what)
      : sent_(sent), received_(received), rank_(rank), tag_(tag), what_(what) {
    out_.resize(sent.size());
    in_.resize(sent.size());
  }

  void add(std::span<const Outgoing> out, std::span<const Incoming> in) {
    std::vector<const Outgoing*> to_self;
    for (const Outgoing& o : out) {
      if (o.rank == rank_) {
        to_self.push_back(&o);
      } else {
        queue(&out_[static_cast<size_t>(o.rank)], &sent_[static_cast<size_t>(o.rank)],
              const_cast<void*>(o.data), o.num_bytes);
      }
    }
    size_t own = 0;
    for (const Incoming& i : in) {
      if (i.rank == rank_) {
        FATHOM_ASSERT(own < to_self.size() && to_self[own]->num_bytes == i.num_bytes);
        if (i.num_bytes > 0) {
          std::memmove(i.data, to_self[own]->data, static_cast<size_t>(i.num_bytes));
        }
        ++own;
      } else {
        queue(&in_[static_cast<size_t>(i.rank)], &received_[static_cast<size_t>(i.rank)], i.data,
              i.num_bytes);
      }
    }
  }

  int events_of(size_t rank) const {
    return (in_[rank].is_done() ? 0 : POLLIN) | (out_[rank].is_done() ? 0 : POLLOUT);
  }

  /// Moves what can be moved. @return false when the connection is broken.
  bool advance(size_t rank, int fd, int events) {
    if ((events & (POLLOUT | POLLERR | POLLHUP)) != 0 && !send(&out_[rank], fd)) return false;
    return (events & (POLLIN | POLLERR | POLLHUP)) == 0 || receive(&in_[rank], fd, rank);
  }

  std::string waited_for() const {
    std::string from, to;
    for (size_t r = 0; r < in_.size(); ++r) {
      if (!in_[r].is_done()) from += str_cat(from.empty() ? "" : ", ", r);
      if (!out_[r].is_done()) to += str_cat(to.empty() ? "" : ", ", r);
    }
    return str_cat(from.empty() ? "" : "a message from rank " + from,
                   !from.empty() && !to.empty() ? " and " : "",
                   to.empty() ? "" : "room for a message to rank " + to);
  }

 private:
  void queue(Transfer* t, uint32_t* sequence, void* data, int64_t num_bytes) {
    t->headers.push_back({kMessageMagic, (*sequence)++, tag_, num_bytes});
    t->pieces.push_back({reinterpret_cast<char*>(&t->headers.back()), sizeof(MessageHeader), true});
    if (num_bytes > 0) t->pieces.push_back({static_cast<char*>(data), num_bytes, false});
  }

  static bool send(Transfer* t, int fd) {
    while (!t->is_done()) {
      Transfer::Piece& piece = t->pieces.front();
      const ssize_t n =
          ::send(fd, piece.data, static_cast<size_t>(piece.left), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno == EAGAIN;
      piece.data += n;
      piece.left -= n;
      if (piece.left == 0) t->pieces.pop_front();
    }
    return true;
  }

  bool receive(Transfer* t, int fd, size_t rank) const {
    while (!t->is_done()) {
      Transfer::Piece& piece = t->pieces.front();
      char* to = piece.is_header
                     ? reinterpret_cast<char*>(&t->got) + sizeof(MessageHeader) - piece.left
                     : piece.data;
      const ssize_t n = ::recv(fd, to, static_cast<size_t>(piece.left), MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno == EAGAIN;
      if (n == 0) return false;
      if (!piece.is_header) piece.data += n;
      piece.left -= n;
      if (piece.left > 0) continue;
      if (piece.is_header) check_header(t->got, t->headers.front(), rank);
      if (piece.is_header) t->headers.pop_front();
      t->pieces.pop_front();
    }
    return true;
  }

  void check_header(const MessageHeader& got, const MessageHeader& wanted, size_t rank) const {
    if (std::memcmp(&got, &wanted, sizeof got) == 0) return;
    throw InternalError(str_cat("rank ", rank_, ", ", what_, ": expected message ", wanted.sequence,
                                " of ", wanted.num_bytes, " bytes (tag ", wanted.tag,
                                ") from rank ", rank, ", got message ", got.sequence, " of ",
                                got.num_bytes, " bytes (tag ", got.tag,
                                "): the ranks do not do the same things in the same order"));
  }

  std::vector<uint32_t>& sent_;
  std::vector<uint32_t>& received_;
  int rank_;
  uint64_t tag_;
  const char* what_;
  std::vector<Transfer> out_, in_;  // by rank
};

}  // namespace

void World::exchange(std::span<const Outgoing> out, std::span<const Incoming> in, uint64_t tag,
                     const char* what) {
  Impl& w = *impl_;
  if (size() > 1) w.throw_if_failed();
  std::vector<uint32_t> alone(1);
  Exchange exchange(size() > 1 ? w.sent : alone, size() > 1 ? w.received : alone, rank(), tag,
                    what);
  exchange.add(out, in);
  if (size() == 1) return;
  const Deadline start = Clock::now(), deadline = start + w.options.operation_timeout;
  std::vector<pollfd> entries;
  std::vector<size_t> ranks;
  // The first round tries without waiting: small messages need no poll().
  for (bool is_first = true;; is_first = false) {
    entries.clear();
    ranks.clear();
    for (size_t r = 0; r < w.data.size(); ++r) {
      const int events = exchange.events_of(r);
      if (events == 0) continue;
      entries.push_back({w.data[r].fd(), static_cast<short>(events), 0});
      ranks.push_back(r);
    }
    if (entries.empty()) break;
    if (!is_first) ::poll(entries.data(), entries.size(), milliseconds_until(deadline));
    for (size_t i = 0; i < entries.size(); ++i) {
      const int events = is_first ? entries[i].events : entries[i].revents;
      if (events != 0 && !exchange.advance(ranks[i], entries[i].fd, events)) {
        w.throw_failure(static_cast<int>(ranks[i]));
      }
    }
    FATHOM_CHECK(Clock::now() < deadline || is_first, "rank ", rank(), ", ", what, ": waited ",
                 std::chrono::duration<double>(w.options.operation_timeout).count(), " s for ",
                 exchange.waited_for(),
                 "\n  fix: look at that rank's log; --distributed-timeout-minutes sets the limit");
  }
  int64_t bytes_sent = 0;
  for (const Outgoing& o : out) bytes_sent += o.rank == rank() ? 0 : o.num_bytes;
  const Deadline end = Clock::now();
  w.traffic.bytes_sent += bytes_sent;
  ++w.traffic.num_operations;
  w.traffic.seconds += std::chrono::duration<double>(end - start).count();
  if (w.observer) w.observer(what, bytes_sent, start, end);
}

}  // namespace fathom::dist
