// HTTP messages as values, and the errors that become responses.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/json.h"

namespace fathom {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

/// The first header of that name, whatever its case. Null when there is none.
const std::string* find_header(const HttpHeaders& headers, std::string_view name);

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // as sent, without the query
  std::string query;   // behind the question mark, as sent
  HttpHeaders headers;
  std::string body;
  /// Value of a query parameter, decoded. Errors: HttpError 400 for a broken escape.
  std::optional<std::string> query_value(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  HttpHeaders headers = {};  // further ones; lengths and the connection are the server's business
};

/// A request that gets an error response.
class HttpError : public Error {
 public:
  /// @param field the body's field that is wrong; empty: not a matter of one field.
  HttpError(int status, const std::string& message, std::string field = "")
      : Error(message), status_(status), field_(std::move(field)) {}
  int status() const { return status_; }
  const std::string& field() const { return field_; }

 private:
  int status_;
  std::string field_;
};

/// Compact JSON. Text that is not UTF-8 has U+FFFD in place of what is broken.
std::string dump_json(const Json& json);
HttpResponse json_response(const Json& json, int status = 200);
HttpResponse text_response(std::string text, int status = 200);
/// {"error": {"message", "type", "param", "code"}}: the shape that OpenAI and SGLang clients read.
HttpResponse error_response(int status, std::string_view message, std::string_view field = "");
Json error_json(int status, std::string_view message, std::string_view field = "");

/// "Not Found" of 404.
std::string_view status_text(int status);

/// %41 to A; '+' stays. Nullopt for a broken escape.
std::optional<std::string> url_decode(std::string_view text);
/// Everything but letters, digits and -._~ as %XX.
std::string url_encode(std::string_view text);

/// http://host:port of "http://host:port/", "host:port" or "host" (port 80), checked.
struct Url {
  std::string host, port;
  std::string text() const { return "http://" + host + ":" + port; }
};
/// Errors: UserError for anything but plain http.
Url parse_url(const std::string& text);

}  // namespace fathom
