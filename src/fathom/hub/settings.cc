#include "fathom/hub/settings.h"

#include <algorithm>
#include <charconv>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/hub/url.h"

namespace fathom::hub {
namespace {

class Variables {
 public:
  explicit Variables(const std::map<std::string, std::string>& all) : all_(all) {}

  /// The first of the names that is set to something.
  std::string first(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      const auto it = all_.find(name);
      if (it != all_.end() && !it->second.empty()) return it->second;
    }
    return "";
  }

  bool is_on(std::initializer_list<const char*> names) const {
    return std::any_of(names.begin(), names.end(), [&](const char* name) {
      std::string value = first({name});
      std::transform(value.begin(), value.end(), value.begin(),
                     [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
      return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
    });
  }

  double seconds(const char* name, double otherwise) const {
    const std::string text = first({name});
    if (text.empty()) return otherwise;
    double value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || rest != text.data() + text.size() || value <= 0 || value > 86400)
      throw ConfigError(str_cat(name, " must be a number of seconds above 0, got '", text, "'"));
    return value;
  }

 private:
  const std::map<std::string, std::string>& all_;
};

std::string stripped(std::string text) {
  std::erase_if(text, [](char c) { return c == '\r' || c == '\n'; });
  text.erase(0, std::min(text.find_first_not_of(" \t"), text.size()));
  text.erase(text.find_last_not_of(" \t") + 1);
  return text;
}

std::string expand_home(const std::string& path, const std::string& home) {
  return path == "~" || path.starts_with("~/") ? home + path.substr(1) : path;
}

std::string read_token(const Variables& variables, const std::string& hf_home,
                       const std::string& home) {
  std::string origin = "HF_TOKEN";
  std::string token = stripped(variables.first({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}));
  if (token.empty()) {
    const std::string given = variables.first({"HF_TOKEN_PATH"});
    origin = given.empty() ? join_path(hf_home, "token") : expand_home(given, home);
    if (file_exists(origin)) token = stripped(read_file(origin));
  }
  // It becomes part of a header: a line break inside would start another one.
  for (const char c : token)
    if (c <= ' ' || c > '~')
      throw ConfigError(origin + ": the token holds a blank or a character that no token has");
  return token;
}

}  // namespace

HubSettings read_hub_settings(const std::map<std::string, std::string>& environment) {
  const Variables variables(environment);
  const std::string home = variables.first({"HOME"});
  HubSettings s;
  if (const std::string given = variables.first({"HF_ENDPOINT"}); !given.empty()) {
    s.endpoint = given.substr(0, given.find_last_not_of('/') + 1);
    if (!is_http_url(s.endpoint))
      throw ConfigError("HF_ENDPOINT must be an http or https URL, got '" + given + "'");
  }
  std::string hf_home = expand_home(variables.first({"HF_HOME"}), home);
  if (hf_home.empty()) {
    const std::string cache = expand_home(variables.first({"XDG_CACHE_HOME"}), home);
    hf_home = join_path(cache.empty() ? join_path(home, ".cache") : cache, "huggingface");
  }
  s.cache_dir = expand_home(variables.first({"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}), home);
  if (s.cache_dir.empty()) s.cache_dir = join_path(hf_home, "hub");
  s.ca_file = variables.first({"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"});
  s.is_offline = variables.is_on({"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"});
  s.use_symlinks = !variables.is_on({"HF_HUB_DISABLE_SYMLINKS"});
  s.metadata_timeout_s = variables.seconds("HF_HUB_ETAG_TIMEOUT", s.metadata_timeout_s);
  s.download_timeout_s = variables.seconds("HF_HUB_DOWNLOAD_TIMEOUT", s.download_timeout_s);
  if (!variables.is_on({"HF_HUB_DISABLE_IMPLICIT_TOKEN"}))
    s.token = read_token(variables, hf_home, home);
  return s;
}

}  // namespace fathom::hub
