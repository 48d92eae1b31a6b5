// One HTTP exchange at a time over libcurl. Redirects are not followed here: who follows one
// decides what may be sent to the other host.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom::hub {

struct HttpRequest {
  std::string method = "GET";  // or HEAD
  std::string url;
  std::vector<std::string> headers;  // "Name: value"
  double connect_timeout_s = 10;
  double idle_timeout_s = 10;                 // without a byte
  int64_t max_body_bytes = int64_t{1} << 26;  // of a body that is kept in memory
};

struct HttpResponse {
  int status = 0;                                            // 0: no answer
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string failure;       // why there was no whole answer; empty: there was one
  bool may_pass_off = true;  // a failure that another try may not meet
  bool was_stopped = false;  // by the sink or the flag, not a failure of the network

  /// The first header of that lower-case name; "" when there is none.
  const std::string& header(std::string_view name) const;
  bool is_ok() const { return failure.empty() && status >= 200 && status < 300; }
  bool is_redirect() const;
};

/// Takes the body of a 200 or 206, piece by piece, with status and headers known. @return false:
/// stop here.
using BodySink = std::function<bool(const HttpResponse& head, std::string_view bytes)>;

/// Keeps its connection open between requests. For one thread at a time.
class HttpClient {
 public:
  /// @param ca_file certificates to trust; empty: the system's. @param stop when set, transfers end
  /// soon. It must outlive the client.
  explicit HttpClient(std::string ca_file = "", const std::atomic<bool>* stop = nullptr);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  /// What came back; a failure of the network is part of the answer, not an exception. Bodies of
  /// errors are kept up to 64 KiB, others without a sink up to max_body_bytes.
  HttpResponse send(const HttpRequest& request, const BodySink& sink = nullptr);

 private:
  struct Exchange;
  void* handle_;
  std::string ca_file_;
  const std::atomic<bool>* stop_;
};

}  // namespace fathom::hub
