// An HTTP/1.1 server that cannot be held up or filled up by one client: every connection has limits
// on header, body, time and number, and a handler is a coroutine, so that a request that waits for
// the engine costs no thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "fathom/server/http.h"

namespace fathom {

namespace asio = boost::asio;

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // an IP address
  int port = 0;                    // 0: one that is free
  int num_threads = 2;
  int64_t max_header_bytes = 32 << 10;  // request line and headers
  int64_t max_body_bytes = 64 << 20;
  int64_t max_total_body_bytes = 1 << 30;  // of all requests that are being read
  int64_t max_connections = 2048;
  std::chrono::milliseconds idle_timeout{75'000};    // between two requests
  std::chrono::milliseconds header_timeout{15'000};  // from a request's first byte
  std::chrono::milliseconds body_timeout{60'000};    // from the header's end
  std::chrono::milliseconds write_timeout{60'000};   // for every 256 KiB of a response
};

/// The client went away while it was being answered.
class ClientGone : public Error {
 public:
  ClientGone() : Error("the client has closed the connection") {}
};

/// One request's way back. All members belong to the handler's coroutine.
/// Arguments are best moved from locals: GCC 12 destroys some temporaries of a co_await twice.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  /// Sends a whole response. Errors: ClientGone.
  virtual asio::awaitable<void> send(HttpResponse response) = 0;
  /// Sends status and headers of a response whose body follows by write(). Errors: ClientGone.
  virtual asio::awaitable<void> start(HttpResponse head) = 0;
  virtual asio::awaitable<void> write(std::string bytes) = 0;
  virtual asio::awaitable<void> end() = 0;
  /// True once send() or start() was called: the status is no longer open.
  virtual bool has_started() const = 0;
  /// Calls `notify` once when the client closes the connection; at once if it has.
  virtual void on_client_gone(std::function<void()> notify) = 0;
  virtual bool client_gone() const = 0;
  /// Runs the connection's coroutines, one at a time.
  virtual asio::any_io_executor executor() const = 0;
};

/// Errors thrown by a handler become responses: HttpError its own, UserError 400, others 500 (and a
/// line in the log). Once a response has started they close the connection.
using HttpHandler = std::function<asio::awaitable<void>(const HttpRequest&, HttpReply&)>;

class HttpServer {
 public:
  /// Listens and serves from now on. Errors: UserError when it cannot listen there.
  HttpServer(const HttpServerOptions& options, HttpHandler handler);
  /// Closes everything, answered or not.
  ~HttpServer();

  int port() const;
  std::string address() const;  // "127.0.0.1:30000"
  asio::any_io_executor executor() const;

  /// Requests that begin from now on get 503, on new connections and on old ones, which close then.
  void begin_drain();
  /// No new connections; those that wait for a request are closed.
  void end_drain();
  int64_t num_active_requests() const;
  int64_t num_connections() const;

  /// Stops all threads. Handlers that wait are never resumed. Called by the destructor.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
