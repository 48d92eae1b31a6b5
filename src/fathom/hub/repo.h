// What a repository is called and what it holds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fathom/base/json.h"

namespace fathom::hub {

enum class RepoType { kModel, kDataset, kSpace };

struct Repo {
  RepoType type = RepoType::kModel;
  std::string name;  // "org/name"

  std::string api_prefix() const;      // "api/datasets/org/name"
  std::string resolve_prefix() const;  // "datasets/org/name"; models: "org/name"
  std::string folder_name() const;     // "datasets--org--name", in a cache
};

/// Errors: ConfigError for what cannot be a repository's name.
void check_repo_name(const std::string& name);

bool is_commit(const std::string& revision);  // 40 lower-case hexadecimal digits
bool is_sha256(const std::string& text);      // 64 of them

/// One file of a commit.
struct RepoFile {
  std::string path;
  int64_t size = 0;
  std::string blob_id;   // git's SHA-1 of the file, or of the pointer to a large file
  std::string sha256;    // of a large file's content; empty for files that git itself holds
  std::string xet_hash;  // carried along for other clients

  /// The ETag that the Hub gives this file.
  const std::string& etag() const { return sha256.empty() ? blob_id : sha256; }
};

/// Whether the file on disk is the one that the listing promises.
/// @param got the hash that it has, for messages.
bool has_promised_content(const std::string& path, const RepoFile& file, std::string* got);

/// Adds the files of one page of the Hub's listing. Errors: UserError for another shape.
void add_tree_page(const Json& page, const std::string& origin, std::vector<RepoFile>* files);

/// Sorts by path. Errors: UserError for a path that appears twice.
void finish_tree(const std::string& origin, std::vector<RepoFile>* files);

/// trees/<commit>.json, as the Python client keeps it.
std::string encode_tree_cache(const std::vector<RepoFile>& files);
/// Nothing for a damaged or unknown one: it is fetched again.
std::optional<std::vector<RepoFile>> decode_tree_cache(std::string_view text);

/// The URL of `rel="next"` in a Link header; empty when there is none.
std::string next_page_url(const std::string& link_header);

}  // namespace fathom::hub
