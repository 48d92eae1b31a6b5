#include "fathom/server/server.h"

#include <boost/asio/ip/address.hpp>
#include <thread>

namespace fathom {

EngineServer::EngineServer(const EngineService::MakeEngine& make_engine, ServedModel model,
                           const ServerOptions& options)
    : model_(std::move(model)), metrics_(model_.name) {
  service_ = std::make_unique<EngineService>(make_engine, options.service, metrics_);
  api_ = std::make_unique<Api>(*service_, model_, metrics_, options.api);
  http_ = std::make_unique<HttpServer>(
      options.http, [api = api_.get()](const HttpRequest& request, HttpReply& reply) {
        return api->handle(request, reply);
      });
}

EngineServer::~EngineServer() {
  // Threads first, from the outside in; then what they have left behind. Wake-up calls may still
  // come while the engine stops, so the HTTP server's executor has to outlive it.
  if (http_) http_->stop();
  if (api_) api_->stop();
  if (service_) service_->stop();
  http_.reset();
}

void EngineServer::begin_drain() {
  api_->begin_drain();
  http_->begin_drain();
}

void EngineServer::drain(std::chrono::milliseconds patience) {
  begin_drain();
  const auto wait = [&](std::chrono::milliseconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (!is_idle() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  };
  wait(patience);
  if (!is_idle()) {
    if (service_->failure().empty()) service_->resume();
    service_->abort_prefix("", "The server is shutting down");
    wait(std::chrono::seconds(10));
  }
  http_->end_drain();
}

bool is_loopback_address(const std::string& host) {
  boost::system::error_code ec;
  const asio::ip::address address = asio::ip::make_address(host, ec);
  FATHOM_CHECK(!ec, "--host ", host, ": not an IP address\n  fix: 127.0.0.1 for this machine ",
               "alone, 0.0.0.0 for every interface");
  return address.is_loopback();
}

}  // namespace fathom
