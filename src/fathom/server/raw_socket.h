// A blocking socket for tests: bytes as they are, well formed or not.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>

#include "fathom/base/error.h"

namespace fathom {

class RawSocket {
 public:
  explicit RawSocket(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    FATHOM_CHECK(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
                 "cannot connect to port ", port);
  }
  ~RawSocket() { close(); }
  RawSocket(const RawSocket&) = delete;
  RawSocket& operator=(const RawSocket&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  /// @return false when the other side has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  /// What comes until `mark` has come, the other side closes, or the time is up.
  std::string read_until(std::string_view mark, int timeout_ms = 10'000) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    for (;;) {
      const size_t at = mark.empty() ? std::string::npos : rest_.find(mark);
      if (at != std::string::npos) return take(at + mark.size());
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          end - std::chrono::steady_clock::now());
      if (left.count() <= 0 || is_closed_) return take(rest_.size());
      receive(static_cast<int>(left.count()));
    }
  }
  /// Everything until the other side closes.
  std::string read_all(int timeout_ms = 10'000) { return read_until("", timeout_ms); }
  /// One response with a Content-Length.
  std::string read_response(int timeout_ms = 10'000) {
    std::string head = read_until("\r\n\r\n", timeout_ms);
    const size_t at = head.find("Content-Length: ");
    if (at == std::string::npos) return head;
    return head + read_bytes(std::stoul(head.substr(at + 16)), timeout_ms);
  }
  /// So many bytes, or what there is when none have come for that time.
  std::string read_bytes(size_t length, int timeout_ms = 10'000) {
    while (rest_.size() < length && !is_closed_) {
      const size_t before = rest_.size();
      receive(timeout_ms);
      if (rest_.size() == before) break;
    }
    return take(std::min(length, rest_.size()));
  }
  bool is_closed() const { return is_closed_; }

 private:
  std::string take(size_t n) {
    std::string out = rest_.substr(0, n);
    rest_.erase(0, n);
    return out;
  }
  /// Adds to rest_ what comes next.
  void receive(int timeout_ms) {
    pollfd waiting{fd_, POLLIN, 0};
    if (::poll(&waiting, 1, timeout_ms) <= 0) return;
    char buffer[65536];
    const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) {
      is_closed_ = true;
    } else {
      rest_.append(buffer, static_cast<size_t>(n));
    }
  }

  int fd_;
  std::string rest_;
  bool is_closed_ = false;
};

inline int status_of(const std::string& response) {
  return response.starts_with("HTTP/1.1 ") ? std::stoi(response.substr(9, 3)) : 0;
}
inline std::string body_of(const std::string& response) {
  const size_t at = response.find("\r\n\r\n");
  return at == std::string::npos ? "" : response.substr(at + 4);
}

}  // namespace fathom
