// The few things that are done to URLs.
#pragma once

#include <string>
#include <string_view>

namespace fathom::hub {

/// Everything but letters, digits and -_.~ becomes %XX; '/' stays when `keep_slash`.
std::string percent_encode(std::string_view text, bool keep_slash);

bool is_http_url(const std::string& url);  // http or https, with a host

/// "https://example.org:443" of a URL. Errors: UserError for what is no http(s) URL.
std::string url_origin(const std::string& url);

/// A Location header against the URL that it answered. Errors: UserError for what is no URL, for
/// another protocol than http(s), and for a step from https down to http.
std::string resolve_location(const std::string& url, const std::string& location);

/// "/a/b", "b": on the host that was asked. "https://..." and "//host/..." are not.
bool is_relative_location(const std::string& location);

/// Without query and user: what may be printed, since signed URLs are keys.
std::string printable_url(const std::string& url);

}  // namespace fathom::hub
