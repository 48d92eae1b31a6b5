#include "fathom/hub/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <cmath>
#include <exception>

#include "fathom/base/error.h"

namespace fathom::hub {
namespace {

constexpr size_t kMaxHeaderBytes = 256 * 1024;
constexpr size_t kMaxErrorBody = 64 * 1024;

// libcurl asks for one initialisation of the process; it is never undone.
void initialise_curl() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  FATHOM_CHECK(code == CURLE_OK, "libcurl cannot start: ", curl_easy_strerror(code));
}

bool may_pass(CURLcode code) {
  switch (code) {
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_OUT_OF_MEMORY:
      return false;
    default:
      return true;
  }
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin));
}

}  // namespace

const std::string& HttpResponse::header(std::string_view name) const {
  static const std::string kNone;
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return kNone;
}

bool HttpResponse::is_redirect() const {
  return failure.empty() &&
         (status == 301 || status == 302 || status == 303 || status == 307 || status == 308) &&
         !header("location").empty();
}

// What libcurl's callbacks work on. Exceptions wait here: they may not pass through C.
struct HttpClient::Exchange {
  CURL* handle;
  const HttpRequest& request;
  const BodySink& sink;
  const std::atomic<bool>* stop;
  HttpResponse response = {};
  size_t header_bytes = 0;
  std::string problem = {};
  std::exception_ptr thrown = nullptr;

  size_t take_header(std::string_view line) {
    header_bytes += line.size();
    if (header_bytes > kMaxHeaderBytes) {
      problem = "its headers are longer than 256 KiB";
      return 0;
    }
    if (line.starts_with("HTTP/")) {  // the last of several answers counts
      response.headers.clear();
      return line.size();
    }
    const size_t colon = line.find(':');
    if (colon != std::string_view::npos)
      response.headers.emplace_back(lower(trimmed(line.substr(0, colon))),
                                    trimmed(line.substr(colon + 1)));
    return line.size();
  }

  size_t take_body(std::string_view bytes) {
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    response.status = static_cast<int>(status);
    if (sink && (status == 200 || status == 206)) {
      try {
        if (sink(response, bytes)) return bytes.size();
      } catch (...) {
        thrown = std::current_exception();
      }
      response.was_stopped = true;
      return 0;
    }
    if (status >= 200 && status < 300) {
      if (static_cast<int64_t>(response.body.size() + bytes.size()) > request.max_body_bytes) {
        problem = str_cat("its answer is longer than ", request.max_body_bytes, " bytes");
        return 0;
      }
      response.body += bytes;
    } else {
      response.body +=
          bytes.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, response.body.size()));
    }
    return bytes.size();
  }

  static size_t on_header(char* data, size_t size, size_t count, void* self) {
    return static_cast<Exchange*>(self)->take_header({data, size * count});
  }
  static size_t on_body(char* data, size_t size, size_t count, void* self) {
    return static_cast<Exchange*>(self)->take_body({data, size * count});
  }
  static int on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    const auto* e = static_cast<Exchange*>(self);
    return e->stop != nullptr && e->stop->load(std::memory_order_relaxed) ? 1 : 0;
  }
};

HttpClient::HttpClient(std::string ca_file, const std::atomic<bool>* stop)
    : handle_((initialise_curl(), curl_easy_init())), ca_file_(std::move(ca_file)), stop_(stop) {
  FATHOM_CHECK(handle_ != nullptr, "libcurl cannot start: out of memory");
}

HttpClient::~HttpClient() { curl_easy_cleanup(handle_); }

HttpResponse HttpClient::send(const HttpRequest& request, const BodySink& sink) {
  CURL* curl = handle_;
  curl_easy_reset(curl);  // options; connections stay
  Exchange exchange{curl, request, sink, stop_};
  curl_slist* headers = nullptr;
  for (const std::string& header : request.headers)
    headers = curl_slist_append(headers, header.c_str());
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_NOBODY, request.method == "HEAD" ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "fathom");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L * 1024);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(std::ceil(request.connect_timeout_s * 1000)));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME,
                   std::max(1L, static_cast<long>(std::ceil(request.idle_timeout_s))));
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &Exchange::on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &exchange);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Exchange::on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &exchange);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &Exchange::on_progress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &exchange);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  if (!ca_file_.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, ca_file_.c_str());
  char why[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why);

  const CURLcode code = curl_easy_perform(curl);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, nullptr);
  curl_slist_free_all(headers);
  if (exchange.thrown) std::rethrow_exception(exchange.thrown);
  HttpResponse& response = exchange.response;
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  response.status = static_cast<int>(status);
  if (code == CURLE_ABORTED_BY_CALLBACK) response.was_stopped = true;
  if (!exchange.problem.empty()) {
    response.failure = exchange.problem;
    response.may_pass_off = false;
  } else if (code != CURLE_OK && !response.was_stopped) {
    response.failure = curl_easy_strerror(code);
    // Of certificates the general text says little.
    if (code == CURLE_PEER_FAILED_VERIFICATION && why[0] != 0) response.failure = why;
    if (code == CURLE_SSL_CACERT_BADFILE) response.failure += ": " + ca_file_;
    response.may_pass_off = may_pass(code);
  }
  return std::move(response);
}

}  // namespace fathom::hub
