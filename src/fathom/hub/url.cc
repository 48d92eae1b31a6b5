#include "fathom/hub/url.h"

#include <curl/curl.h>

#include <algorithm>
#include <memory>

#include "fathom/base/error.h"

namespace fathom::hub {
namespace {

using Handle = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;

Handle parse(const std::string& url) {
  Handle handle(curl_url(), curl_url_cleanup);
  if (handle == nullptr ||
      curl_url_set(handle.get(), CURLUPART_URL, url.c_str(), CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK)
    return {nullptr, curl_url_cleanup};
  return handle;
}

std::string part(const Handle& handle, CURLUPart which, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(handle.get(), which, &text, flags) != CURLUE_OK) return "";
  std::string copy = text;
  curl_free(text);
  return copy;
}

bool is_http(const Handle& handle) {
  if (handle == nullptr) return false;
  const std::string scheme = part(handle, CURLUPART_SCHEME);
  return (scheme == "http" || scheme == "https") && !part(handle, CURLUPART_HOST).empty();
}

}  // namespace

std::string percent_encode(std::string_view text, bool keep_slash) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~' || (keep_slash && c == '/');
    if (plain) {
      out += c;
    } else {
      out += '%';
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out;
}

bool is_http_url(const std::string& url) { return is_http(parse(url)); }

std::string url_origin(const std::string& url) {
  const Handle handle = parse(url);
  FATHOM_CHECK(is_http(handle), "not an http or https URL: ", printable_url(url));
  std::string host = part(handle, CURLUPART_HOST);
  std::transform(host.begin(), host.end(), host.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return part(handle, CURLUPART_SCHEME) + "://" + host + ":" +
         part(handle, CURLUPART_PORT, CURLU_DEFAULT_PORT);
}

std::string resolve_location(const std::string& url, const std::string& location) {
  const Handle handle = parse(url);
  FATHOM_CHECK(is_http(handle), "not an http or https URL: ", printable_url(url));
  const std::string scheme = part(handle, CURLUPART_SCHEME);
  const bool is_url = curl_url_set(handle.get(), CURLUPART_URL, location.c_str(),
                                   CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK;
  FATHOM_CHECK(is_url && is_http(handle), printable_url(url),
               " redirects to something that is no http or https URL: ", printable_url(location));
  FATHOM_CHECK(scheme != "https" || part(handle, CURLUPART_SCHEME) == "https", printable_url(url),
               " redirects to ", printable_url(location), ", which is not encrypted");
  return part(handle, CURLUPART_URL);
}

bool is_relative_location(const std::string& location) {
  if (location.starts_with("//")) return false;
  const size_t colon = location.find(':');
  const size_t end = location.find_first_of("/?#");
  return colon == std::string::npos || (end != std::string::npos && end < colon);
}

std::string printable_url(const std::string& url) {
  std::string text = url.substr(0, std::min(url.find_first_of("?#"), size_t{200}));
  const size_t slashes = text.find("://");
  if (slashes != std::string::npos) {
    const size_t host = slashes + 3, end = std::min(text.find('/', host), text.size());
    const size_t at = text.rfind('@', end);
    if (at != std::string::npos && at >= host) text.erase(host, at + 1 - host);
  }
  std::erase_if(text, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 127; });
  return text;
}

}  // namespace fathom::hub
