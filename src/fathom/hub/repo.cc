#include "fathom/hub/repo.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/base/file_hash.h"

namespace fathom::hub {
namespace {

constexpr size_t kMaxFiles = 2'000'000;
constexpr int64_t kMaxFileSize = int64_t{1} << 50;

bool is_hex(const std::string& text, size_t length) {
  return text.size() == length && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

const char* plural(RepoType type) {
  return type == RepoType::kModel ? "models" : type == RepoType::kDataset ? "datasets" : "spaces";
}

std::string text_field(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

int64_t size_field(const Json& object, const char* key, const std::string& who) {
  const auto it = object.find(key);
  FATHOM_CHECK(it != object.end() && it->is_number_integer(), who, ": \"", key,
               "\" is missing or no whole number");
  const int64_t size = it->is_number_unsigned() && it->get<uint64_t>() > uint64_t{kMaxFileSize}
                           ? -1
                           : it->get<int64_t>();
  FATHOM_CHECK(size >= 0 && size <= kMaxFileSize, who, ": a size of ", it->dump(), " bytes");
  return size;
}

RepoFile read_file_entry(const Json& entry, const std::string& who) {
  RepoFile file;
  file.path = text_field(entry, "path");
  file.size = size_field(entry, "size", who);
  file.blob_id = text_field(entry, "oid");
  file.xet_hash = text_field(entry, "xetHash");
  const auto lfs = entry.find("lfs");
  if (lfs != entry.end() && lfs->is_object()) {
    file.sha256 = text_field(*lfs, "oid");
    if (file.sha256.starts_with("sha256:")) file.sha256.erase(0, 7);
    FATHOM_CHECK(is_sha256(file.sha256), who, ": its lfs oid is no SHA-256");
    file.size = size_field(*lfs, "size", who);
  }
  FATHOM_CHECK(is_hex(file.blob_id, 40), who, ": its oid is no git hash");
  return file;
}

}  // namespace

std::string Repo::api_prefix() const { return str_cat("api/", plural(type), "/", name); }

std::string Repo::resolve_prefix() const {
  return type == RepoType::kModel ? name : str_cat(plural(type), "/", name);
}

std::string Repo::folder_name() const {
  std::string folder = plural(type);
  folder += "--";
  for (const char c : name) folder += c == '/' ? std::string("--") : std::string(1, c);
  return folder;
}

void check_repo_name(const std::string& name) {
  const auto bad = [&](const char* rule) {
    throw ConfigError(str_cat("'", name, "' is no name of a repository: ", rule,
                              "\n  fix: write it as ORGANISATION/NAME"));
  };
  if (name.empty() || name.size() > 96) bad("it needs 1 to 96 characters");
  if (std::count(name.begin(), name.end(), '/') > 1) bad("it has more than one '/'");
  if (name.find("--") != std::string::npos || name.find("..") != std::string::npos)
    bad("'--' and '..' are not allowed");
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == '/';
  });
  if (!plain) bad("letters, digits, '-', '_' and '.' only");
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    if (end == begin) bad("a part of it is empty");
    for (const size_t at : {begin, end - 1})
      if (name[at] == '-' || name[at] == '.') bad("a part may not begin or end with '-' or '.'");
    begin = end + 1;
  }
}

bool is_commit(const std::string& revision) { return is_hex(revision, 40); }
bool is_sha256(const std::string& text) { return is_hex(text, 64); }

bool has_promised_content(const std::string& path, const RepoFile& file, std::string* got) {
  *got = file.sha256.empty() ? file_git_sha1(path) : file_sha256(path);
  return *got == file.etag();
}

void add_tree_page(const Json& page, const std::string& origin, std::vector<RepoFile>* files) {
  FATHOM_CHECK(page.is_array(), origin, ": the listing of files must be a JSON list");
  for (const Json& entry : page) {
    FATHOM_CHECK(entry.is_object() && !text_field(entry, "path").empty(), origin,
                 ": an entry of the listing has no path");
    if (text_field(entry, "type") != "file") continue;
    FATHOM_CHECK(files->size() < kMaxFiles, origin, ": more than ", kMaxFiles, " files");
    files->push_back(read_file_entry(entry, origin + ": " + Json(entry["path"]).dump()));
  }
}

void finish_tree(const std::string& origin, std::vector<RepoFile>* files) {
  std::sort(files->begin(), files->end(),
            [](const RepoFile& a, const RepoFile& b) { return a.path < b.path; });
  const auto twice =
      std::adjacent_find(files->begin(), files->end(),
                         [](const RepoFile& a, const RepoFile& b) { return a.path == b.path; });
  FATHOM_CHECK(twice == files->end(), origin, ": the listing has ", twice->path, " twice");
}

std::string encode_tree_cache(const std::vector<RepoFile>& files) {
  nlohmann::json entries = nlohmann::json::object();
  for (const RepoFile& file : files) {
    nlohmann::json entry = {{"size", file.size}, {"blob_id", file.blob_id}};
    if (!file.sha256.empty()) {
      entry["lfs_sha256"] = file.sha256;
      entry["lfs_size"] = file.size;
    }
    if (!file.xet_hash.empty()) entry["xet_hash"] = file.xet_hash;
    entries[file.path] = std::move(entry);
  }
  return nlohmann::json{{"format_version", 1}, {"files", std::move(entries)}}.dump(1);
}

std::optional<std::vector<RepoFile>> decode_tree_cache(std::string_view text) {
  const nlohmann::json tree = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!tree.is_object() || !tree.contains("format_version") || tree["format_version"] != 1 ||
      !tree.contains("files") || !tree["files"].is_object())
    return std::nullopt;
  std::vector<RepoFile> files;
  for (const auto& [path, entry] : tree["files"].items()) {
    if (!entry.is_object()) return std::nullopt;
    const auto text_of = [&entry = entry](const char* key) -> std::string {
      return entry.contains(key) && entry[key].is_string() ? entry[key].get<std::string>() : "";
    };
    RepoFile file{path, -1, text_of("blob_id"), text_of("lfs_sha256"), text_of("xet_hash")};
    const char* size = file.sha256.empty() ? "size" : "lfs_size";
    if (entry.contains(size) && entry[size].is_number_unsigned() &&
        entry[size].get<uint64_t>() <= uint64_t{kMaxFileSize})
      file.size = entry[size].get<int64_t>();
    const bool is_sound = !path.empty() && file.size >= 0 && is_hex(file.blob_id, 40) &&
                          (file.sha256.empty() || is_sha256(file.sha256));
    if (!is_sound) return std::nullopt;
    files.push_back(std::move(file));
  }
  return files;
}

std::string next_page_url(const std::string& link_header) {
  for (size_t at = 0; at < link_header.size();) {
    const size_t open = link_header.find('<', at);
    const size_t close = link_header.find('>', open == std::string::npos ? open : open + 1);
    if (open == std::string::npos || close == std::string::npos) return "";
    const size_t end = std::min(link_header.find(',', close), link_header.size());
    const std::string parameters = link_header.substr(close + 1, end - close - 1);
    if (parameters.find("rel=\"next\"") != std::string::npos ||
        parameters.find("rel=next") != std::string::npos)
      return link_header.substr(open + 1, close - open - 1);
    at = end + 1;
  }
  return "";
}

}  // namespace fathom::hub
