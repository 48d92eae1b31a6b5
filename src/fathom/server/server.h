// An engine behind HTTP, put together: service, endpoints, HTTP server.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "fathom/server/api.h"

namespace fathom {

struct ServerOptions {
  HttpServerOptions http;
  EngineService::Options service;
  ApiOptions api;
};

class EngineServer {
 public:
  /// Serves from now on. @param make_engine see EngineService.
  /// Errors: UserError when it cannot listen; those of make_engine.
  EngineServer(const EngineService::MakeEngine& make_engine, ServedModel model,
               const ServerOptions& options);
  /// Breaks off what is under way.
  ~EngineServer();

  int port() const { return http_->port(); }
  std::string address() const { return http_->address(); }
  EngineService& service() { return *service_; }

  /// Takes no new requests; health checks fail from now on.
  void begin_drain();
  /// True when every request has its answer.
  bool is_idle() const { return http_->num_active_requests() == 0; }
  /// Drains; aborts what is still unfinished after `patience`, and tells clients so. Nobody can
  /// connect afterwards.
  void drain(std::chrono::milliseconds patience);

 private:
  ServedModel model_;
  EngineMetrics metrics_;
  std::unique_ptr<EngineService> service_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<HttpServer> http_;
};

/// Errors: UserError for a text that is not an IP address.
bool is_loopback_address(const std::string& host);

}  // namespace fathom
