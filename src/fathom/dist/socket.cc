#include "fathom/dist/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

namespace fathom::dist {
namespace {

constexpr auto kRetryPause = std::chrono::milliseconds(50);
constexpr int kBacklog = 512;

std::string error_text() { return std::strerror(errno); }

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const Address& address, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (code != 0) {
    throw ConnectionError(str_cat("cannot look up the host '", address.host,
                                  "': ", ::gai_strerror(code),
                                  "\n  fix: set MASTER_ADDR to a name or number of rank 0's host"));
  }
  return AddressList(found, &::freeaddrinfo);
}

void set_non_blocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

/// Small messages go out at once, and a machine that has vanished is noticed in half a minute.
void set_connection_options(int fd) {
  const auto set = [fd](int level, int option, int value) {
    ::setsockopt(fd, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 4);
}

/// One attempt. @return a closed Socket when it was refused or timed out; errno says why.
Socket try_connect(const addrinfo& to, Deadline deadline) {
  Socket socket(::socket(to.ai_family, to.ai_socktype | SOCK_CLOEXEC, to.ai_protocol));
  if (!socket.is_open()) return {};
  set_non_blocking(socket.fd());
  if (::connect(socket.fd(), to.ai_addr, to.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return {};
    if (wait_for_events(socket.fd(), POLLOUT, deadline) == 0) {
      errno = ETIMEDOUT;
      return {};
    }
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
      errno = error;
      return {};
    }
  }
  set_connection_options(socket.fd());
  return socket;
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) ::close(fd_);
}

void Socket::shut_down() const {
  if (fd_ >= 0) ::shutdown(fd_, SHUT_RDWR);
}

std::string Address::text() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? str_cat("[", host, "]:", port) : str_cat(host, ":", port);
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

int milliseconds_until(Deadline deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left + 1, 0, 60'000));
}

int wait_for_events(int fd, int events, Deadline deadline) {
  while (true) {
    pollfd entry{fd, static_cast<short>(events), 0};
    const int n = ::poll(&entry, 1, milliseconds_until(deadline));
    if (n > 0) return entry.revents;
    if (Clock::now() >= deadline) return 0;
  }
}

Socket listen_on(const Address& address) {
  const AddressList found = resolve(address, AI_PASSIVE);
  for (const addrinfo* a = found.get(); a != nullptr; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (!socket.is_open()) continue;
    const int on = 1;
    ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(socket.fd(), a->ai_addr, a->ai_addrlen) != 0) continue;
    if (::listen(socket.fd(), kBacklog) != 0) continue;
    set_non_blocking(socket.fd());
    return socket;
  }
  throw ConnectionError(str_cat("cannot listen on ", address.text(), ": ", error_text(),
                                "\n  fix: MASTER_ADDR must be an address of rank 0's host and "
                                "MASTER_PORT a free port there"));
}

Address local_address(const Socket& socket) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&storage), &length) != 0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&storage), length, host, sizeof host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    throw ConnectionError("cannot tell the address of a socket: " + error_text());
  }
  return {host, std::stoi(port)};
}

Socket accept_one(const Socket& listener, Deadline deadline) {
  while (wait_for_events(listener.fd(), POLLIN, deadline) != 0) {
    Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.is_open()) {
      set_connection_options(socket.fd());
      return socket;
    }
    if (errno == EMFILE || errno == ENFILE) {
      throw ConnectionError(
          "cannot accept a connection: too many open files\n"
          "  fix: raise the limit (ulimit -n)");
    }
    // The other side has gone again, or another thread was faster.
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) return {};
  }
  return {};
}

Socket connect_to(const Address& address, Deadline deadline) {
  while (true) {
    const AddressList found = resolve(address, 0);
    for (const addrinfo* a = found.get(); a != nullptr; a = a->ai_next) {
      if (Socket socket = try_connect(*a, deadline); socket.is_open()) return socket;
    }
    if (Clock::now() + kRetryPause >= deadline) {
      throw ConnectionError(str_cat("cannot connect to ", address.text(), ": ", error_text()));
    }
    std::this_thread::sleep_for(kRetryPause);
  }
}

void send_all(const Socket& socket, const void* data, int64_t num_bytes, Deadline deadline,
              const std::string& what) {
  const char* from = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n =
        ::send(socket.fd(), from, static_cast<size_t>(num_bytes), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      from += n;
      num_bytes -= n;
    } else if (n < 0 && errno == EAGAIN) {
      if (wait_for_events(socket.fd(), POLLOUT, deadline) == 0)
        throw ConnectionError("time is up for " + what);
    } else if (errno != EINTR) {
      throw ConnectionError(what + ": the connection was closed");
    }
  }
}

void recv_all(const Socket& socket, void* data, int64_t num_bytes, Deadline deadline,
              const std::string& what) {
  char* to = static_cast<char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = ::recv(socket.fd(), to, static_cast<size_t>(num_bytes), MSG_DONTWAIT);
    if (n > 0) {
      to += n;
      num_bytes -= n;
    } else if (n < 0 && errno == EAGAIN) {
      if (wait_for_events(socket.fd(), POLLIN, deadline) == 0)
        throw ConnectionError("time is up for " + what);
    } else if (n == 0 || errno != EINTR) {
      throw ConnectionError(what + ": the connection was closed");
    }
  }
}

}  // namespace fathom::dist
