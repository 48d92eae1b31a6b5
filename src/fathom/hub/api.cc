#include "fathom/hub/api.h"

#include <charconv>
#include <set>

#include "fathom/base/log.h"
#include "fathom/hub/url.h"

namespace fathom::hub {
namespace {

constexpr int kMaxRedirects = 5;
constexpr int kMaxPages = 100'000;

std::string plain_etag(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

std::optional<int64_t> number(const std::string& text) {
  int64_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

// What a person may read of a header or a body that someone else wrote.
std::string printable(const std::string& text) {
  std::string out = text.substr(0, 300);
  for (char& c : out)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = ' ';
  return out;
}

}  // namespace

HubApi::HubApi(const HubSettings& settings, const std::atomic<bool>* stop)
    : settings_(settings),
      stop_(stop),
      origin_(url_origin(settings.endpoint)),
      client_(settings.ca_file, stop) {}

// The token is for the Hub alone: another scheme, host or port is someone else.
std::vector<std::string> HubApi::headers_for(const std::string& url) const {
  std::vector<std::string> headers = {"Accept-Encoding: identity"};
  if (!settings_.token.empty() && url_origin(url) == origin_)
    headers.push_back("Authorization: Bearer " + settings_.token);
  return headers;
}

void HubApi::refuse(const HttpResponse& response, const std::string& what) const {
  const std::string code = printable(response.header("x-error-code"));
  std::string said = printable(response.header("x-error-message"));
  std::string fix;
  if (code == "GatedRepo" || response.status == 403) {
    fix = "\n  fix: accept the repository's terms on its page and give a token by HF_TOKEN";
  } else if (code == "RevisionNotFound") {
    fix = "\n  fix: check --revision";
  } else if (response.status == 401 || response.status == 404) {
    fix = settings_.token.empty()
              ? "\n  fix: check its name; for a private or gated one give a token by HF_TOKEN"
              : "\n  fix: check its name, and that the token may read it";
  }
  if (!code.empty()) said = said.empty() ? code : code + ", " + said;
  throw HubRefusal(str_cat(what, ": ", settings_.endpoint, " answered ", response.status,
                           said.empty() ? "" : " (" + said + ")", fix),
                   response.status, code);
}

// Asks until there is an answer; redirects on the same host are followed, others are the answer.
HttpResponse HubApi::ask(const std::string& method, const std::string& first_url,
                         const std::string& what) {
  std::string url = first_url;
  int redirects = 0;
  for (int failures = 0;;) {
    HttpRequest request;
    request.method = method;
    request.url = url;
    request.headers = headers_for(url);
    request.connect_timeout_s = request.idle_timeout_s = settings_.metadata_timeout_s;
    HttpResponse response = client_.send(request);
    FATHOM_CHECK(!response.was_stopped, what, ": stopped");
    if (response.is_redirect()) {
      const std::string& location = response.header("location");
      // An absolute redirect of a HEAD is the answer: the place to GET the file from.
      if (method == "HEAD" && !is_relative_location(location)) {
        if (url != first_url) response.headers.emplace_back("x-final-url", url);
        return response;
      }
      FATHOM_CHECK(++redirects <= kMaxRedirects, what, ": more than ", kMaxRedirects, " redirects");
      url = resolve_location(url, location);
      continue;
    }
    if (response.is_ok()) {
      // Where a HEAD came from is where to GET.
      if (url != first_url) response.headers.emplace_back("x-final-url", url);
      return response;
    }
    if (!is_worth_retrying(response)) {
      if (response.failure.empty()) refuse(response, what);
      throw HubUnreachable(str_cat(what, ": ", printable_url(url), ": ", response.failure));
    }
    const std::string why =
        response.failure.empty() ? str_cat("it answered ", response.status) : response.failure;
    if (++failures >= settings_.retry.max_tries)
      throw HubUnreachable(str_cat(what, ": ", printable_url(url), ": ", why, ", ", failures,
                                   " times\n  fix: check the network and HF_ENDPOINT, or set ",
                                   "HF_HUB_OFFLINE=1 to use what is there"));
    const double delay = retry_delay_s(settings_.retry, failures, response);
    log_info(what, ": ", why, "; trying again in ", delay, " s");
    FATHOM_CHECK(sleep_unless(delay, stop_), what, ": stopped");
  }
}

std::string HubApi::resolve_revision(const Repo& repo, const std::string& revision) {
  if (is_commit(revision)) return revision;
  const std::string what = repo.name + " at " + revision;
  const HttpResponse response = ask("GET",
                                    str_cat(settings_.endpoint, "/", repo.api_prefix(),
                                            "/revision/", percent_encode(revision, false)),
                                    what);
  const Json info = parse_json(response.body, what);
  FATHOM_CHECK(info.is_object() && info.contains("sha") && info["sha"].is_string() &&
                   is_commit(info["sha"].get<std::string>()),
               what, ": the answer of ", settings_.endpoint,
               " names no commit\n  fix: check HF_ENDPOINT");
  return info["sha"].get<std::string>();
}

std::vector<RepoFile> HubApi::list_files(const Repo& repo, const std::string& commit) {
  const std::string what = "the files of " + repo.name;
  std::vector<RepoFile> files;
  std::set<std::string> seen;
  std::string url = str_cat(settings_.endpoint, "/", repo.api_prefix(), "/tree/", commit,
                            "?recursive=true&expand=false");
  while (!url.empty()) {
    FATHOM_CHECK(seen.insert(url).second && seen.size() <= kMaxPages, what,
                 ": the pages of the listing have no end");
    const HttpResponse response = ask("GET", url, what);
    add_tree_page(parse_json(response.body, what), what, &files);
    const std::string next = next_page_url(response.header("link"));
    url = next.empty() ? "" : resolve_location(url, next);
  }
  finish_tree(what, &files);
  return files;
}

FileLocation HubApi::locate(const Repo& repo, const std::string& commit, const std::string& path) {
  const std::string what = repo.name + ": " + path;
  const std::string url = str_cat(settings_.endpoint, "/", repo.resolve_prefix(), "/resolve/",
                                  commit, "/", percent_encode(path, true));
  const HttpResponse response = ask("HEAD", url, what);
  const std::string& got = response.header("x-repo-commit");
  FATHOM_CHECK(got == commit, what, ": asked for commit ", commit, ", the answer is for '",
               printable(got), "'\n  fix: check that HF_ENDPOINT is a Hub");
  FileLocation location;
  location.is_redirected = response.is_redirect();
  const std::string& final_url = response.header("x-final-url");
  location.url = location.is_redirected ? resolve_location(final_url.empty() ? url : final_url,
                                                           response.header("location"))
                 : final_url.empty() ? url
                                     : final_url;
  const std::string& linked = response.header("x-linked-etag");
  location.etag = plain_etag(linked.empty() ? response.header("etag") : linked);
  const bool is_usable =
      !location.etag.empty() && location.etag.size() <= 128 &&
      location.etag.find_first_not_of(
          "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_") == std::string::npos;
  FATHOM_CHECK(is_usable, what, ": the Hub gives no usable ETag ('", printable(location.etag),
               "')");
  location.size = number(response.header("x-linked-size"));
  if (!location.size && !location.is_redirected)
    location.size = number(response.header("content-length"));
  return location;
}

HttpResponse HubApi::get(const std::string& first_url, const std::vector<std::string>& more_headers,
                         const BodySink& sink) {
  std::string url = first_url;
  for (int redirects = 0;; ++redirects) {
    FATHOM_CHECK(redirects <= kMaxRedirects, printable_url(first_url), ": more than ",
                 kMaxRedirects, " redirects");
    HttpRequest request;
    request.url = url;
    request.headers = headers_for(url);
    request.headers.insert(request.headers.end(), more_headers.begin(), more_headers.end());
    request.connect_timeout_s = settings_.metadata_timeout_s;
    request.idle_timeout_s = settings_.download_timeout_s;
    HttpResponse response = client_.send(request, sink);
    if (!response.is_redirect()) return response;
    url = resolve_location(url, response.header("location"));
  }
}

}  // namespace fathom::hub
