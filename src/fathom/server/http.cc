#include "fathom/server/http.h"

#include <algorithm>
#include <charconv>

namespace fathom {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool same_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return lower(x) == lower(y); });
}

bool is_unreserved(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_' || c == '~';
}

}  // namespace

const std::string* find_header(const HttpHeaders& headers, std::string_view name) {
  for (const auto& [key, value] : headers) {
    if (same_ignoring_case(key, name)) return &value;
  }
  return nullptr;
}

std::optional<std::string> HttpRequest::query_value(std::string_view name) const {
  std::string_view rest = query;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('&'), rest.size());
    const std::string_view pair = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const size_t equals = std::min(pair.find('='), pair.size());
    if (pair.substr(0, equals) != name) continue;
    const std::optional<std::string> value =
        url_decode(pair.substr(std::min(equals + 1, pair.size())));
    if (!value) throw HttpError(400, str_cat("broken escape in the query"), std::string(name));
    return value;
  }
  return std::nullopt;
}

std::string dump_json(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

HttpResponse json_response(const Json& json, int status) {
  return {.status = status, .body = dump_json(json)};
}

HttpResponse text_response(std::string text, int status) {
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = std::move(text)};
}

Json error_json(int status, std::string_view message, std::string_view field) {
  const std::string_view type = status == 401   ? "authentication_error"
                                : status == 404 ? "not_found_error"
                                : status < 500  ? "invalid_request_error"
                                                : "server_error";
  Json error{{"message", message}, {"type", type}, {"param", nullptr}, {"code", status}};
  if (!field.empty()) error["param"] = field;
  return Json{{"error", std::move(error)}};
}

HttpResponse error_response(int status, std::string_view message, std::string_view field) {
  return json_response(error_json(status, message, field), status);
}

std::string_view status_text(int status) {
  static constexpr std::pair<int, std::string_view> kTexts[] = {
      {100, "Continue"},
      {200, "OK"},
      {202, "Accepted"},
      {400, "Bad Request"},
      {401, "Unauthorized"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {408, "Request Timeout"},
      {409, "Conflict"},
      {411, "Length Required"},
      {413, "Content Too Large"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {499, "Client Closed Request"},
      {500, "Internal Server Error"},
      {501, "Not Implemented"},
      {502, "Bad Gateway"},
      {503, "Service Unavailable"},
      {504, "Gateway Timeout"},
      {505, "HTTP Version Not Supported"},
  };
  for (const auto& [code, text] : kTexts) {
    if (code == status) return text;
  }
  return status < 400 ? "OK" : "Error";
}

std::optional<std::string> url_decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out.push_back(text[i]);
      continue;
    }
    unsigned byte = 0;
    const std::string_view digits = text.substr(i + 1, 2);
    const auto [end, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
    if (digits.size() != 2 || ec != std::errc() || end != digits.data() + 2) return std::nullopt;
    out.push_back(static_cast<char>(byte));
    i += 2;
  }
  return out;
}

std::string url_encode(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    if (is_unreserved(c)) {
      out.push_back(c);
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return out;
}

Url parse_url(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  std::string_view rest = text;
  if (rest.starts_with(kScheme)) rest.remove_prefix(kScheme.size());
  while (rest.ends_with('/')) rest.remove_suffix(1);
  const size_t colon = rest.rfind(':');
  const std::string_view host = rest.substr(0, std::min(colon, rest.size()));
  const std::string_view port =
      colon == std::string_view::npos ? std::string_view("80") : rest.substr(colon + 1);
  int number = 0;
  const auto [end, ec] = std::from_chars(port.data(), port.data() + port.size(), number);
  const bool good_host = !host.empty() && std::all_of(host.begin(), host.end(), is_unreserved);
  FATHOM_CHECK(good_host && ec == std::errc() && end == port.data() + port.size() && number >= 1 &&
                   number <= 65535,
               "'", text.substr(0, 200), "' is not an address\n  fix: write http://host:port");
  return {std::string(host), std::string(port)};
}

}  // namespace fathom
