#include "fathom/server/http_client.h"

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <optional>

namespace fathom {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

}  // namespace

struct HttpClient::Impl {
  Impl(asio::any_io_executor executor, Url u)
      : url(std::move(u)), resolver(executor), stream(executor) {}

  void check(const beast::error_code& ec, const char* what) const {
    if (!ec) return;
    throw ConnectionError(str_cat(url.text(), ": ", what, ": ",
                                  ec == beast::error::timeout ? "took too long" : ec.message()));
  }

  Url url;
  tcp::resolver resolver;
  beast::tcp_stream stream;
  beast::flat_buffer buffer;
  std::optional<http::response_parser<http::buffer_body>> parser;
  std::array<char, 64 << 10> piece;
};

HttpClient::HttpClient(asio::any_io_executor executor, Url url)
    : impl_(std::make_unique<Impl>(std::move(executor), std::move(url))) {}
HttpClient::~HttpClient() = default;
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;

asio::awaitable<void> HttpClient::connect(Duration timeout) {
  const auto [resolve_error, endpoints] =
      co_await impl_->resolver.async_resolve(impl_->url.host, impl_->url.port, kAwait);
  impl_->check(resolve_error, "cannot find the host");
  impl_->stream.expires_after(timeout);
  const auto [connect_error, endpoint] = co_await impl_->stream.async_connect(endpoints, kAwait);
  impl_->check(connect_error, "cannot connect");
  beast::error_code ignored;
  impl_->stream.socket().set_option(tcp::no_delay(true), ignored);
}

asio::awaitable<void> HttpClient::send(const HttpRequest& request, Duration timeout) {
  std::string bytes = str_cat(request.method, " ", request.path, request.query.empty() ? "" : "?",
                              request.query, " HTTP/1.1\r\nHost: ", impl_->url.host, ":",
                              impl_->url.port, "\r\nContent-Length: ", request.body.size(), "\r\n");
  for (const auto& [name, value] : request.headers) bytes += str_cat(name, ": ", value, "\r\n");
  bytes += "\r\n";
  bytes += request.body;
  impl_->stream.expires_after(timeout);
  const auto [ec, num_bytes] =
      co_await asio::async_write(impl_->stream, asio::buffer(bytes), kAwait);
  impl_->check(ec, "cannot send");
}

asio::awaitable<HttpResponse> HttpClient::read_head(Duration timeout) {
  impl_->parser.emplace();
  impl_->parser->body_limit(boost::none);
  impl_->parser->header_limit(64 << 10);
  impl_->stream.expires_after(timeout);
  const auto [ec, num_bytes] =
      co_await http::async_read_header(impl_->stream, impl_->buffer, *impl_->parser, kAwait);
  impl_->check(ec, "no response");
  HttpResponse head;
  head.status = static_cast<int>(impl_->parser->get().result_int());
  head.content_type.clear();
  for (const auto& field : impl_->parser->get()) {
    if (field.name() == http::field::content_type) {
      head.content_type = std::string(field.value());
    } else {
      head.headers.emplace_back(field.name_string(), field.value());
    }
  }
  co_return head;
}

asio::awaitable<std::string> HttpClient::read_some(Duration timeout) {
  Impl& c = *impl_;
  while (!c.parser->is_done()) {
    c.parser->get().body().data = c.piece.data();
    c.parser->get().body().size = c.piece.size();
    c.parser->get().body().more = true;
    c.stream.expires_after(timeout);
    const auto [ec, num_bytes] =
        co_await http::async_read_some(c.stream, c.buffer, *c.parser, kAwait);
    if (ec != http::error::need_buffer) c.check(ec, "the response broke off");
    const size_t size = c.piece.size() - c.parser->get().body().size;
    if (size > 0) co_return std::string(c.piece.data(), size);
  }
  co_return std::string();
}

bool HttpClient::is_reusable() const {
  return impl_->parser && impl_->parser->is_done() && impl_->parser->keep_alive();
}

void HttpClient::cancel() {
  impl_->resolver.cancel();
  beast::error_code ignored;
  impl_->stream.socket().close(ignored);
}

asio::awaitable<HttpResponse> fetch(asio::any_io_executor executor, Url url, HttpRequest request,
                                    HttpClient::Duration timeout, int64_t max_body) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  const auto left = [&] { return end - std::chrono::steady_clock::now(); };
  HttpClient client(executor, url);
  co_await client.connect(left());
  co_await client.send(request, left());
  HttpResponse response = co_await client.read_head(left());
  for (;;) {
    const std::string piece = co_await client.read_some(left());
    if (piece.empty()) break;
    response.body += piece;
    if (static_cast<int64_t>(response.body.size()) > max_body) {
      throw ConnectionError(str_cat(url.text(), ": a response of over ", max_body, " bytes"));
    }
  }
  co_return response;
}

}  // namespace fathom
