// What a Hub or anyone in between can send: listings, headers, redirects, names of files. The first
// byte chooses.
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/hub/patterns.h"
#include "fathom/hub/repo.h"
#include "fathom/hub/retry.h"
#include "fathom/hub/url.h"
#include "fuzz.h"

namespace {

using fathom::fuzz::require;

void fuzz_listing(std::string_view text) {
  std::vector<fathom::hub::RepoFile> files;
  fathom::hub::add_tree_page(fathom::parse_json(text, "input"), "input", &files);
  fathom::hub::finish_tree("input", &files);
  for (const auto& file : files) require(file.size >= 0 && !file.path.empty());
  const auto again = fathom::hub::decode_tree_cache(fathom::hub::encode_tree_cache(files));
  require(again.has_value() && again->size() == files.size());
}

void fuzz_path(const std::string& path) {
  fathom::hub::check_path_is_safe(path);
  require(path.front() != '/' && ("/" + path + "/").find("/../") == std::string::npos);
  require(fathom::hub::matches_pattern(path, fathom::hub::literal_pattern(path)));
}

void fuzz_headers(const std::string& text) {
  fathom::hub::HttpResponse response;
  response.status = 429;
  response.headers = {{"ratelimit", text}, {"retry-after", text}};
  const double delay = fathom::hub::retry_delay_s({}, 1, response);
  require(delay >= 0 && delay <= 600);
  (void)fathom::hub::next_page_url(text);
  (void)fathom::hub::is_relative_location(text);
  (void)fathom::hub::printable_url(text);
}

// A redirect is either refused or leads to an http(s) URL.
void fuzz_redirect(const std::string& text) {
  const std::string target = fathom::hub::resolve_location("https://hub.example/a/b?c", text);
  require(target.starts_with("https://"));
  require(fathom::hub::url_origin(target).starts_with("https://"));
}

void fuzz_pattern(const std::string& text) {
  const size_t half = text.size() / 2;
  (void)fathom::hub::matches_pattern(text.substr(0, half), text.substr(half));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  if (size == 0) return 0;
  const std::string text(fuzz::as_text(data + 1, size - 1));
  fuzz::refuse_or_accept([&] {
    switch (data[0] % 6) {
      case 0:
        return fuzz_listing(text);
      case 1:
        (void)hub::decode_tree_cache(text);
        return;
      case 2:
        return fuzz_path(text);
      case 3:
        return fuzz_headers(text);
      case 4:
        return fuzz_redirect(text);
      default:
        return fuzz_pattern(text);
    }
  });
  return 0;
}
