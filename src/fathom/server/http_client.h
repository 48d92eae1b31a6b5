// An HTTP/1.1 client as coroutines: what the router speaks to engines with, and tests to servers.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <memory>
#include <string>

#include "fathom/server/http.h"

namespace fathom {

namespace asio = boost::asio;

/// The other side cannot be reached, or broke off.
class ConnectionError : public Error {
 public:
  using Error::Error;
};

/// One connection. Every member may throw ConnectionError, after which the connection is of no use.
class HttpClient {
 public:
  using Duration = std::chrono::steady_clock::duration;

  HttpClient(asio::any_io_executor executor, Url url);
  ~HttpClient();
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;

  asio::awaitable<void> connect(Duration timeout);
  /// Sends a whole request. Host and Content-Length are added.
  asio::awaitable<void> send(const HttpRequest& request, Duration timeout);
  /// Status and headers of the response; its body is empty.
  asio::awaitable<HttpResponse> read_head(Duration timeout);
  /// The next bytes of the body, as soon as there are any. Empty at the end.
  asio::awaitable<std::string> read_some(Duration timeout);
  /// True when the response is read and another request may follow.
  bool is_reusable() const;
  /// Ends whatever is under way with an error. On the executor.
  void cancel();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A request and its whole response over a connection of its own.
/// Errors: ConnectionError, also when it takes longer than `timeout` or has over `max_body` bytes.
asio::awaitable<HttpResponse> fetch(asio::any_io_executor executor, Url url, HttpRequest request,
                                    HttpClient::Duration timeout, int64_t max_body = 64 << 20);

}  // namespace fathom
