#include "fathom/hub/record.h"

#include <unistd.h>

#include <algorithm>

#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/hub/local_layout.h"
#include "fathom/hub/patterns.h"

namespace fathom::hub {
namespace {

std::string record_path(const std::string& local_dir) {
  return join_path(LocalLayout::storage_path_of(local_dir), "fathom.json");
}

Json describe(const SnapshotRequest& request) {
  return {{"repo", request.repo.resolve_prefix()},
          {"revision", request.revision},
          {"include", request.include},
          {"exclude", request.exclude}};
}

}  // namespace

void write_download_record(const SnapshotRequest& request, const std::string& commit) {
  Json record = describe(request);
  record["commit"] = commit;
  write_file_atomic(record_path(request.local_dir), record.dump(1) + "\n");
}

void remove_download_record(const std::string& local_dir) {
  ::unlink(record_path(local_dir).c_str());
}

bool is_complete_download(const SnapshotRequest& request, const std::vector<std::string>& edited) {
  const std::string path = record_path(request.local_dir);
  if (!file_exists(path)) return false;
  Json record = read_json_file(path);
  if (!record.is_object() || !record.contains("commit") || !record["commit"].is_string())
    return false;
  const std::string commit = record["commit"];
  record.erase("commit");
  if (record != describe(request) || !is_commit(commit)) return false;
  const std::string tree =
      join_path(LocalLayout::storage_path_of(request.local_dir), "trees/" + commit + ".json");
  const auto files = file_exists(tree) ? decode_tree_cache(read_file(tree)) : std::nullopt;
  return files && std::all_of(files->begin(), files->end(), [&](const RepoFile& file) {
           if (!is_wanted(file.path, request.include, request.exclude)) return true;
           const int64_t size = regular_file_size(join_path(request.local_dir, file.path));
           const bool is_edited =
               std::find(edited.begin(), edited.end(), file.path) != edited.end();
           return is_edited ? size >= 0 : size == file.size;
         });
}

bool has_download_notes(const std::string& local_dir) {
  return directory_exists(LocalLayout::storage_path_of(local_dir));
}

}  // namespace fathom::hub
