// TCP connections between ranks: every call has a deadline, nothing raises SIGPIPE.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "fathom/base/error.h"

namespace fathom::dist {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

/// A connection that could not be made, was closed or timed out.
class ConnectionError : public UserError {
 public:
  using UserError::UserError;
};

/// Owns a file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  /// Wakes whoever waits on it, in this process and the other; the descriptor stays taken.
  void shut_down() const;

 private:
  int fd_ = -1;
};

struct Address {
  std::string host;
  int port = 0;
  std::string text() const;  // "10.0.0.1:29500", "[::1]:29500"
};

/// "localhost", 127.x.x.x or ::1.
bool is_loopback(const std::string& host);

/// A listening socket on that address alone, never on all interfaces. Port 0: one that is free.
/// Errors: ConnectionError (no such address on this machine, port taken).
Socket listen_on(const Address& address);
/// Host and port that a socket is bound to.
Address local_address(const Socket& socket);

/// The next connection, or a closed Socket when none came in time.
Socket accept_one(const Socket& listener, Deadline deadline);
/// Tries until the deadline, also while nobody listens there yet.
Socket connect_to(const Address& address, Deadline deadline);

/// Errors: ConnectionError when the other side closes or the time is up. @param what is waited for,
/// for the message.
void send_all(const Socket& socket, const void* data, int64_t num_bytes, Deadline deadline,
              const std::string& what);
void recv_all(const Socket& socket, void* data, int64_t num_bytes, Deadline deadline,
              const std::string& what);

/// Waits until `fd` has one of `events` (poll). @return its events, 0 when the time is up.
int wait_for_events(int fd, int events, Deadline deadline);
/// Milliseconds until then, for poll(): at least 0, at most a minute.
int milliseconds_until(Deadline deadline);

}  // namespace fathom::dist
