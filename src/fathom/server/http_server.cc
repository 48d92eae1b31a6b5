#include "fathom/server/http_server.h"

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "fathom/base/log.h"
#include "fathom/server/http_connection.h"

namespace fathom {

using asio::ip::tcp;

struct HttpServer::Impl {
  Impl(const HttpServerOptions& o, HttpHandler h)
      : shared(std::make_shared<HttpServerShared>()), context(o.num_threads), acceptor(context) {
    shared->options = o;
    shared->handler = std::move(h);
  }

  void listen() {
    const HttpServerOptions& o = shared->options;
    boost::system::error_code ec;
    const asio::ip::address address = asio::ip::make_address(o.host, ec);
    FATHOM_CHECK(!ec, "--host ", o.host, ": not an IP address\n  fix: 127.0.0.1 for this machine ",
                 "alone, 0.0.0.0 for every interface");
    FATHOM_CHECK(o.port >= 0 && o.port <= 65535, "--port ", o.port, ": must be from 0 to 65535");
    const tcp::endpoint endpoint(address, static_cast<asio::ip::port_type>(o.port));
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(asio::socket_base::max_listen_connections, ec);
    FATHOM_CHECK(!ec, "cannot listen on ", o.host, " port ", o.port, ": ", ec.message(),
                 "\n  fix: choose another --port (0: one that is free)");
    port = acceptor.local_endpoint().port();
  }

  asio::awaitable<void> accept_connections() {
    asio::steady_timer pause(context);
    for (;;) {
      tcp::socket socket(asio::make_strand(context));
      boost::system::error_code ec;
      co_await acceptor.async_accept(socket, asio::redirect_error(asio::use_awaitable, ec));
      if (ec == asio::error::operation_aborted || !acceptor.is_open()) co_return;
      if (ec) {
        // Out of file descriptors, most likely: others will be closed before long.
        pause.expires_after(std::chrono::milliseconds(50));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
        continue;
      }
      const asio::any_io_executor strand = socket.get_executor();
      auto connection = std::make_shared<HttpConnection>(std::move(socket), shared);
      asio::co_spawn(strand, HttpConnection::serve(connection), asio::detached);
    }
  }

  std::shared_ptr<HttpServerShared> shared;
  asio::io_context context;
  tcp::acceptor acceptor;
  int port = 0;
  std::vector<std::thread> threads;
};

HttpServer::HttpServer(const HttpServerOptions& options, HttpHandler handler)
    : impl_(std::make_unique<Impl>(options, std::move(handler))) {
  FATHOM_ASSERT(options.num_threads >= 1, options.num_threads, " threads");
  impl_->listen();
  asio::co_spawn(impl_->context, impl_->accept_connections(), asio::detached);
  for (int i = 0; i < options.num_threads; ++i) {
    impl_->threads.emplace_back([this] {
      for (;;) {
        try {
          impl_->context.run();
          return;
        } catch (const std::exception& e) {
          log_warning("http: ", e.what());
        }
      }
    });
  }
}

HttpServer::~HttpServer() { stop(); }

void HttpServer::stop() {
  impl_->context.stop();
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
}

int HttpServer::port() const { return impl_->port; }

std::string HttpServer::address() const {
  const std::string& host = impl_->shared->options.host;
  const bool is_v6 = host.find(':') != std::string::npos;
  return str_cat(is_v6 ? "[" : "", host, is_v6 ? "]:" : ":", impl_->port);
}

asio::any_io_executor HttpServer::executor() const { return impl_->context.get_executor(); }

void HttpServer::begin_drain() { impl_->shared->is_draining = true; }

void HttpServer::end_drain() {
  const auto closed = std::make_shared<std::promise<void>>();
  asio::post(impl_->context, [impl = impl_.get(), closed] {
    boost::system::error_code ignored;
    impl->acceptor.close(ignored);
    closed->set_value();
  });
  closed->get_future().wait_for(std::chrono::seconds(1));  // longer only if a handler blocks
  impl_->shared->close_idle();
}

int64_t HttpServer::num_active_requests() const { return impl_->shared->num_active_requests; }
int64_t HttpServer::num_connections() const { return impl_->shared->num_connections; }

}  // namespace fathom
