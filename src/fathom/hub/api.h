// Questions to a Hub: which commit, which files, where a file lies.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/hub/http.h"
#include "fathom/hub/repo.h"
#include "fathom/hub/settings.h"

namespace fathom::hub {

/// The Hub could not be reached, or asked to come back later until patience ended.
class HubUnreachable : public UserError {
 public:
  using UserError::UserError;
};

/// The Hub said no.
class HubRefusal : public UserError {
 public:
  HubRefusal(const std::string& message, int status_code, std::string error_code)
      : UserError(message), status(status_code), code(std::move(error_code)) {}
  /// No such repository, or none that this token may see.
  bool is_missing_repo() const { return code == "RepoNotFound" || (code.empty() && (status == 404 || status == 401)); }
  int status;
  std::string code;  // X-Error-Code: "RepoNotFound", "GatedRepo", ...; may be empty
};

/// Where a file lies and what it is.
struct FileLocation {
  std::string url;             // to GET; may be signed and expire
  bool is_redirected = false;  // to another place than the Hub's own answer
  std::string etag;            // without W/ and quotes
  std::optional<int64_t> size;
};

/// For one thread at a time.
class HubApi {
 public:
  /// @param stop when set, requests and waits end soon. Both must outlive this.
  explicit HubApi(const HubSettings& settings, const std::atomic<bool>* stop = nullptr);

  // Errors of all three: HubUnreachable, HubRefusal, UserError for an answer of another shape.

  /// A branch, tag or commit -> commit.
  std::string resolve_revision(const Repo& repo, const std::string& revision);
  /// Every file of a commit, by path.
  std::vector<RepoFile> list_files(const Repo& repo, const std::string& commit);
  FileLocation locate(const Repo& repo, const std::string& commit, const std::string& path);

  /// One request for a file's bytes, without retries: redirects are followed, and the token goes
  /// along where the origin is the Hub's own. @param more_headers e.g. Range.
  HttpResponse get(const std::string& url, const std::vector<std::string>& more_headers,
                   const BodySink& sink);

 private:
  std::vector<std::string> headers_for(const std::string& url) const;
  HttpResponse ask(const std::string& method, const std::string& url, const std::string& what);
  [[noreturn]] void refuse(const HttpResponse& response, const std::string& what) const;

  const HubSettings& settings_;
  const std::atomic<bool>* stop_;
  std::string origin_;
  HttpClient client_;
};

}  // namespace fathom::hub
