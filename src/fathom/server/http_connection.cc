#include "fathom/server/http_connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <cerrno>
#include <exception>
#include <iterator>

#include "fathom/base/log.h"

namespace fathom {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kWritePiece = 256 << 10;

/// Counts bytes that a request holds while it is read.
class BodyBytes {
 public:
  explicit BodyBytes(std::atomic<int64_t>* total) : total_(total) {}
  ~BodyBytes() { *total_ -= held_; }
  /// @return false when all requests together hold more than `limit`.
  bool hold(int64_t num_bytes, int64_t limit) {
    const int64_t more = std::max<int64_t>(0, num_bytes - held_);
    held_ += more;
    return (*total_ += more) <= limit;
  }

 private:
  std::atomic<int64_t>* total_;
  int64_t held_ = 0;
};

bool is_line_safe(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7F;
  });
}

bool has_line_break(const HttpResponse& response) {
  return std::any_of(response.headers.begin(), response.headers.end(), [](const auto& h) {
    return !is_line_safe(h.first) || !is_line_safe(h.second);
  });
}

}  // namespace

void HttpServerShared::add(HttpConnection* connection) {
  const std::lock_guard<std::mutex> lock(mutex_);
  connections_.insert(connection);
  ++num_connections;
}

void HttpServerShared::remove(HttpConnection* connection) {
  const std::lock_guard<std::mutex> lock(mutex_);
  connections_.erase(connection);
  --num_connections;
}

void HttpServerShared::close_idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (HttpConnection* connection : connections_) connection->close_if_idle();
}

HttpConnection::HttpConnection(tcp::socket socket, std::shared_ptr<HttpServerShared> shared)
    : executor_(socket.get_executor()), stream_(std::move(socket)), shared_(std::move(shared)) {
  shared_->add(this);
}

HttpConnection::~HttpConnection() { shared_->remove(this); }

void HttpConnection::close_if_idle() {
  was_told_to_close_ = true;
  asio::post(executor_, [this, alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired() || !is_idle_) return;
    beast::error_code ignored;
    stream_.socket().close(ignored);
  });
}

asio::awaitable<void> HttpConnection::serve(std::shared_ptr<HttpConnection> self) {
  HttpConnection& c = *self;
  beast::error_code ignored;
  c.stream_.socket().set_option(tcp::no_delay(true), ignored);
  if (c.shared_->num_connections > c.shared_->options.max_connections) {
    HttpResponse response = error_response(503, "too many connections");
    try {
      co_await c.send(std::move(response));
      co_await c.close_gently();
    } catch (const ClientGone&) {
    }
    co_return;
  }
  while (co_await c.wait_for_request()) {
    const bool is_late = c.shared_->is_draining;  // nothing of it had come before the drain
    HttpRequest request;
    Failure failure = co_await c.read_request(&request);
    if (is_late && failure.message.empty()) failure = {503, "the server is shutting down"};
    try {
      if (!failure.message.empty()) {
        c.keep_alive_ = false;
        if (failure.status == 0) co_return;
        HttpResponse response = error_response(failure.status, failure.message);
        co_await c.send(std::move(response));
      } else {
        co_await c.handle(request);
      }
    } catch (const ClientGone&) {
      co_return;
    }
    if (!c.keep_alive_ || c.shared_->is_draining) break;
  }
  co_await c.close_gently();
}

asio::awaitable<bool> HttpConnection::wait_for_request() {
  has_started_ = is_streaming_ = has_ended_ = client_gone_ = false;
  keep_alive_ = true;
  is_http_1_0_ = is_head_ = false;
  if (was_told_to_close_) co_return false;
  if (buffer_.size() > 0) co_return true;
  is_idle_ = true;
  stream_.expires_after(shared_->options.idle_timeout);
  // A read of some bytes, so that the stream's deadline applies.
  const auto [ec, num_bytes] = co_await stream_.async_read_some(buffer_.prepare(4096), kAwait);
  is_idle_ = false;
  buffer_.commit(num_bytes);
  co_return !ec;
}

asio::awaitable<HttpConnection::Failure> HttpConnection::read_request(HttpRequest* request) {
  const HttpServerOptions& o = shared_->options;
  Parser parser;
  parser.header_limit(static_cast<uint32_t>(o.max_header_bytes));
  parser.body_limit(static_cast<uint64_t>(o.max_body_bytes));
  buffer_.max_size(static_cast<size_t>(o.max_header_bytes) + (64 << 10));
  stream_.expires_after(o.header_timeout);
  const auto [ec, num_bytes] = co_await http::async_read_header(stream_, buffer_, parser, kAwait);
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow) {
    co_return Failure{431, str_cat("the header has more than ", o.max_header_bytes, " bytes")};
  }
  if (ec == http::error::body_limit) {
    co_return Failure{413, str_cat("the body has more than ", o.max_body_bytes, " bytes")};
  }
  if (ec == beast::error::timeout) co_return Failure{0, "the header came too slowly"};
  if (ec == http::error::end_of_stream || ec == http::error::partial_message) {
    co_return Failure{0, "the connection ended"};
  }
  if (ec) {
    const bool is_http_error =
        ec.category() == http::make_error_code(http::error::bad_method).category();
    co_return Failure{is_http_error ? 400 : 0, str_cat("not an HTTP request: ", ec.message())};
  }
  is_http_1_0_ = parser.get().version() < 11;
  keep_alive_ = parser.get().keep_alive();
  is_head_ = parser.get().method() == http::verb::head;

  Failure failure = check_head(parser.get());
  if (!failure.message.empty()) co_return failure;
  failure = co_await read_body(&parser);
  if (!failure.message.empty()) co_return failure;

  http::request<http::string_body>& message = parser.get();
  request->method = std::string(message.method_string());
  const std::string target(message.target());
  const size_t question = std::min(target.find('?'), target.size());
  request->path = target.substr(0, question);
  request->query = target.substr(std::min(question + 1, target.size()));
  for (const auto& field : message) {
    request->headers.emplace_back(field.name_string(), field.value());
  }
  request->body = std::move(message.body());
  co_return Failure{};
}

/// What a request's head says although HTTP forbids it, or we do not speak it.
HttpConnection::Failure HttpConnection::check_head(const Parser::value_type& head) {
  if (head.version() >= 11 && head.count(http::field::host) != 1) {
    return {400, "one Host header is expected"};
  }
  // A coding that is not known would leave open where the body ends.
  const auto [first, last] = head.equal_range(http::field::transfer_encoding);
  for (auto field = first; field != last; ++field) {
    if (std::next(first) != last || !beast::iequals(field->value(), "chunked")) {
      return {501, "Transfer-Encoding: only chunked is known, and only once"};
    }
  }
  return {};
}

asio::awaitable<HttpConnection::Failure> HttpConnection::read_body(Parser* parser) {
  const HttpServerOptions& o = shared_->options;
  BodyBytes held(&shared_->num_body_bytes);
  const Failure too_many{503, "the server holds as many request bodies as it may; try again"};
  if (const auto length = parser->content_length()) {
    if (*length > static_cast<uint64_t>(o.max_body_bytes)) {
      co_return Failure{413, str_cat("the body has more than ", o.max_body_bytes, " bytes")};
    }
    if (!held.hold(static_cast<int64_t>(*length), o.max_total_body_bytes)) co_return too_many;
  }
  const auto expect = parser->get()[http::field::expect];
  if (!expect.empty() && !parser->is_done()) {
    co_await send_bytes("HTTP/1.1 100 Continue\r\n\r\n", 25);
  }
  stream_.expires_after(o.body_timeout);
  while (!parser->is_done()) {
    const auto [ec, num_bytes] = co_await http::async_read_some(stream_, buffer_, *parser, kAwait);
    if (ec == http::error::body_limit) {
      co_return Failure{413, str_cat("the body has more than ", o.max_body_bytes, " bytes")};
    }
    if (ec == beast::error::timeout) co_return Failure{0, "the body came too slowly"};
    if (ec == http::error::partial_message || ec == http::error::end_of_stream) {
      co_return Failure{0, "the connection ended"};
    }
    if (ec == http::error::buffer_overflow) {
      co_return Failure{400, "a chunk's header is too long"};
    }
    if (ec) {
      const bool is_http_error =
          ec.category() == http::make_error_code(http::error::bad_chunk).category();
      co_return Failure{is_http_error ? 400 : 0, str_cat("the body is broken: ", ec.message())};
    }
    if (!held.hold(static_cast<int64_t>(parser->get().body().capacity()), o.max_total_body_bytes)) {
      co_return too_many;
    }
  }
  co_return Failure{};
}

asio::awaitable<void> HttpConnection::handle(const HttpRequest& request) {
  struct Active {
    explicit Active(std::atomic<int64_t>* n) : count(n) { ++*count; }
    ~Active() { --*count; }
    std::atomic<int64_t>* count;
  };
  const Active active(&shared_->num_active_requests);
  watch_client();
  HttpResponse error;
  try {
    co_await shared_->handler(request, *this);
    if (!has_started_) error = error_response(500, "the request was not answered");
  } catch (const HttpError& e) {
    error = error_response(e.status(), e.what(), e.field());
  } catch (const UserError& e) {
    error = error_response(400, e.what());
  } catch (const ClientGone&) {
    stop_watching();
    throw;
  } catch (const std::exception& e) {
    log_warning("http: ", request.method, " ", request.path.substr(0, 200), ": ", e.what());
    error = error_response(500, "internal error; the server's log says more");
  }
  stop_watching();
  if (has_started_) {
    // A body that was not ended may not look like one that was.
    if (!has_ended_) {
      keep_alive_ = false;
      throw ClientGone();
    }
    co_return;
  }
  co_await send(std::move(error));
}

std::string HttpConnection::head_text(const HttpResponse& response,
                                      std::optional<size_t> length) const {
  FATHOM_ASSERT(!has_line_break(response) && is_line_safe(response.content_type),
                "a header holds a control character");
  std::string head = str_cat("HTTP/1.1 ", response.status, " ", status_text(response.status),
                             "\r\nContent-Type: ", response.content_type, "\r\n");
  for (const auto& [name, value] : response.headers) head += str_cat(name, ": ", value, "\r\n");
  if (length) {
    head += str_cat("Content-Length: ", *length, "\r\n");
  } else if (!is_http_1_0_) {
    head += "Transfer-Encoding: chunked\r\n";
  }
  const bool closes = !keep_alive_ || shared_->is_draining || (!length && is_http_1_0_);
  head += closes ? "Connection: close\r\n\r\n" : "Connection: keep-alive\r\n\r\n";
  return head;
}

asio::awaitable<void> HttpConnection::send(HttpResponse response) {
  FATHOM_ASSERT(!has_started_, "this request has been answered");
  std::string bytes = head_text(response, response.body.size());
  has_started_ = has_ended_ = true;
  if (!is_head_) bytes += response.body;
  co_await send_bytes(bytes.data(), bytes.size());
}

asio::awaitable<void> HttpConnection::start(HttpResponse head) {
  FATHOM_ASSERT(!has_started_, "this request has been answered");
  if (is_http_1_0_) keep_alive_ = false;
  const std::string bytes = head_text(head, std::nullopt);
  has_started_ = is_streaming_ = true;
  co_await send_bytes(bytes.data(), bytes.size());
}

asio::awaitable<void> HttpConnection::write(std::string bytes) {
  FATHOM_ASSERT(is_streaming_ && !has_ended_, "no body is under way");
  if (bytes.empty() || is_head_) co_return;
  if (!is_http_1_0_) {
    char size[24];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    bytes.insert(0, size);
    bytes += "\r\n";
  }
  co_await send_bytes(bytes.data(), bytes.size());
}

asio::awaitable<void> HttpConnection::end() {
  FATHOM_ASSERT(is_streaming_ && !has_ended_, "no body is under way");
  has_ended_ = true;
  if (!is_http_1_0_ && !is_head_) co_await send_bytes("0\r\n\r\n", 5);
}

asio::awaitable<void> HttpConnection::send_bytes(const char* data, size_t size) {
  while (size > 0) {
    const size_t piece = std::min(size, kWritePiece);
    stream_.expires_after(shared_->options.write_timeout);
    const auto [ec, num_bytes] =
        co_await asio::async_write(stream_, asio::buffer(data, piece), kAwait);
    if (ec) {
      tell_client_gone();
      throw ClientGone();
    }
    data += piece;
    size -= piece;
  }
  stream_.expires_never();
}

asio::awaitable<void> HttpConnection::close_gently() {
  // Closing a socket with unread input resets the connection, and the reset may overtake the
  // response. So the client gets a little time to stop sending.
  beast::error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  stream_.expires_after(std::chrono::seconds(2));
  std::string sink(64 << 10, '\0');
  for (int64_t num_left = 256 << 20; num_left > 0;) {
    const auto [ec, num_bytes] = co_await stream_.async_read_some(asio::buffer(sink), kAwait);
    if (ec) break;
    num_left -= static_cast<int64_t>(num_bytes);
  }
  stream_.socket().close(ignored);
}

void HttpConnection::watch_client() {
  const int64_t watch = ++watch_;
  stream_.socket().async_wait(
      tcp::socket::wait_read,
      [this, watch, alive = std::weak_ptr<bool>(alive_)](beast::error_code) {
        if (alive.expired() || watch != watch_) return;
        char byte;
        const ssize_t n =
            ::recv(stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        // Input that came early is the next request's; the end behind it shows when we write.
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
          tell_client_gone();
        }
      });
}

void HttpConnection::stop_watching() {
  ++watch_;
  notify_gone_ = nullptr;
  beast::error_code ignored;
  stream_.socket().cancel(ignored);
}

void HttpConnection::tell_client_gone() {
  client_gone_ = true;
  if (const std::function<void()> notify = std::exchange(notify_gone_, nullptr)) notify();
}

void HttpConnection::on_client_gone(std::function<void()> notify) {
  notify_gone_ = std::move(notify);
  if (client_gone_) tell_client_gone();
}

}  // namespace fathom
