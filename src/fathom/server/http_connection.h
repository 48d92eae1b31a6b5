// One connection of HttpServer: reads requests within the limits, runs the handler, writes replies.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "fathom/server/http_server.h"

namespace fathom {

class HttpConnection;

/// What the connections of a server share.
struct HttpServerShared {
  HttpServerOptions options;
  HttpHandler handler;
  std::atomic<bool> is_draining = false;
  std::atomic<int64_t> num_connections = 0, num_active_requests = 0;
  std::atomic<int64_t> num_body_bytes = 0;  // held by requests that are being read

  void add(HttpConnection* connection);
  void remove(HttpConnection* connection);
  /// Closes the connections that wait for a request.
  void close_idle();

 private:
  std::mutex mutex_;
  std::set<HttpConnection*> connections_;
};

class HttpConnection : public HttpReply {
 public:
  HttpConnection(asio::ip::tcp::socket socket, std::shared_ptr<HttpServerShared> shared);
  ~HttpConnection() override;

  /// Serves one request after the other until the connection ends.
  static asio::awaitable<void> serve(std::shared_ptr<HttpConnection> self);

  asio::awaitable<void> send(HttpResponse response) override;
  asio::awaitable<void> start(HttpResponse head) override;
  asio::awaitable<void> write(std::string bytes) override;
  asio::awaitable<void> end() override;
  bool has_started() const override { return has_started_; }
  void on_client_gone(std::function<void()> notify) override;
  bool client_gone() const override { return client_gone_; }
  asio::any_io_executor executor() const override { return executor_; }

  /// Any thread: closes the connection if no request is under way.
  void close_if_idle();

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  /// Why a request could not be read.
  struct Failure {
    int status = 0;  // 0: nobody is there to be told
    std::string message;
  };

  asio::awaitable<bool> wait_for_request();
  asio::awaitable<Failure> read_request(HttpRequest* request);
  static Failure check_head(const Parser::value_type& head);
  asio::awaitable<Failure> read_body(Parser* parser);
  asio::awaitable<void> handle(const HttpRequest& request);
  asio::awaitable<void> send_bytes(const char* data, size_t size);
  asio::awaitable<void> close_gently();
  std::string head_text(const HttpResponse& response, std::optional<size_t> length) const;
  void watch_client();
  void stop_watching();
  void tell_client_gone();

  asio::any_io_executor executor_;
  boost::beast::tcp_stream stream_;
  std::shared_ptr<HttpServerShared> shared_;
  boost::beast::flat_buffer buffer_;
  std::atomic<bool> is_idle_ = true;
  std::atomic<bool> was_told_to_close_ = false;

  // Of the request under way.
  bool keep_alive_ = false, is_http_1_0_ = false, is_head_ = false;
  bool has_started_ = false, is_streaming_ = false, has_ended_ = false;
  bool client_gone_ = false;
  std::function<void()> notify_gone_;
  int64_t watch_ = 0;  // counts requests, so that a late report is not taken for this one's
  std::shared_ptr<bool> alive_ = std::make_shared<bool>();  // gone with the connection
};

}  // namespace fathom
