#include "fathom/hub/snapshot.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/hub/cache_layout.h"
#include "fathom/hub/local_layout.h"
#include "fathom/hub/patterns.h"
#include "fathom/hub/record.h"

namespace fathom::hub {
namespace {

std::string tree_path(const std::string& storage, const std::string& commit) {
  return join_path(storage, "trees/" + commit + ".json");
}

std::optional<std::vector<RepoFile>> read_tree(const std::string& storage,
                                               const std::string& commit) {
  const std::string path = tree_path(storage, commit);
  if (!file_exists(path)) return std::nullopt;
  return decode_tree_cache(read_file(path));
}

void write_tree(const std::string& root, const std::string& storage, const std::string& commit,
                const std::vector<RepoFile>& files) {
  make_directories(root);
  make_directories_below(root, storage.substr(root.size()) + "/trees");
  write_file_atomic(tree_path(storage, commit), encode_tree_cache(files));
}

class Download {
 public:
  Download(const HubSettings& settings, const SnapshotRequest& request)
      : settings_(settings), request_(request) {}

  Snapshot run(const std::function<void(const TransferProgress&)>& report) {
    check_repo_name(request_.repo.name);
    check_revision();
    if (settings_.is_offline) return use_what_is_there("HF_HUB_OFFLINE is set");
    std::vector<RepoFile> tree;
    try {
      HubApi api(settings_);
      snapshot_.commit = api.resolve_revision(request_.repo, request_.revision);
      tree = list_files(api);
    } catch (const HubUnreachable& e) {
      if (request_.dry_run || request_.force) throw;
      return fall_back(e);
    }
    select(tree);
    return fetch(report);
  }

 private:
  void check_revision() const {
    try {
      check_path_is_safe(request_.revision);
    } catch (const UserError&) {
      throw ConfigError("'" + request_.revision + "' is no name of a revision");
    }
  }

  bool is_local() const { return !request_.local_dir.empty(); }
  std::string root() const { return is_local() ? request_.local_dir : settings_.cache_dir; }
  std::string storage() const {
    return is_local() ? LocalLayout::storage_path_of(request_.local_dir)
                      : join_path(settings_.cache_dir, request_.repo.folder_name());
  }

  std::vector<RepoFile> list_files(HubApi& api) {
    if (auto known = read_tree(storage(), snapshot_.commit)) return std::move(*known);
    std::vector<RepoFile> files = api.list_files(request_.repo, snapshot_.commit);
    if (!request_.dry_run) write_tree(root(), storage(), snapshot_.commit, files);
    return files;
  }

  // Nothing is written before every name was looked at.
  void select(const std::vector<RepoFile>& tree) {
    std::set<std::string> directories;
    for (const RepoFile& file : tree) {
      if (!is_wanted(file.path, request_.include, request_.exclude)) continue;
      check_path_is_safe(file.path);
      FATHOM_CHECK(!is_local() || !(file.path + "/").starts_with(".cache/huggingface/"),
                   request_.repo.name, ": the file ", file.path,
                   " would replace the notes on the download");
      for (std::string d = directory_of(file.path); !d.empty(); d = directory_of(d))
        if (!directories.insert(d).second) break;
      snapshot_.files.push_back({file});
    }
    for (const SnapshotFile& f : snapshot_.files)
      FATHOM_CHECK(directories.count(f.file.path) == 0, request_.repo.name, ": ", f.file.path,
                   " is a file and a directory");
    if (snapshot_.files.empty() && !tree.empty())
      log_warning(request_.repo.name, ": no file matches the patterns");
  }

  Snapshot fetch(const std::function<void(const TransferProgress&)>& report) {
    CacheLayout cache(settings_.cache_dir, request_.repo, snapshot_.commit, settings_.use_symlinks);
    std::unique_ptr<LocalLayout> local;
    if (is_local())
      local = std::make_unique<LocalLayout>(request_.local_dir, snapshot_.commit, &cache);
    Destination* destination = is_local() ? static_cast<Destination*>(local.get()) : &cache;
    snapshot_.path = is_local() ? request_.local_dir : cache.snapshot_path();

    std::vector<RepoFile> wanted;
    int64_t num_bytes = 0;
    for (SnapshotFile& f : snapshot_.files) {
      f.is_fetched = request_.force || !is_there(*destination, cache, f.file);
      if (!f.is_fetched) continue;
      wanted.push_back(f.file);
      num_bytes += f.file.size;
    }
    snapshot_.num_fetched = static_cast<int64_t>(wanted.size());
    snapshot_.bytes_fetched = num_bytes;
    if (request_.dry_run) return std::move(snapshot_);
    if (!wanted.empty()) {
      make_directories(root());
      check_free_space(num_bytes);
      if (is_local()) remove_download_record(root());
      if (request_.force) forget(wanted);
      Transfer transfer(settings_, request_.repo, snapshot_.commit, destination);
      transfer.run(wanted, report);
      snapshot_.bytes_fetched = transfer.bytes_received();
    } else if (!is_local()) {
      make_directories_below(root(),
                             storage().substr(root().size()) + "/snapshots/" + snapshot_.commit);
    }
    if (is_local())
      write_download_record(request_, snapshot_.commit);
    else
      cache.write_ref(request_.revision);
    return std::move(snapshot_);
  }

  // In a dry run nothing is written, not even a note that a file was found to be right.
  bool is_there(Destination& destination, const CacheLayout& cache, const RepoFile& file) const {
    if (!request_.dry_run) return destination.has(file);
    return is_local() ? regular_file_size(join_path(request_.local_dir, file.path)) == file.size
                      : !cache.find(file).empty();
  }

  void forget(const std::vector<RepoFile>& files) const {
    for (const RepoFile& file : files) {
      const std::string paths[] = {
          is_local() ? join_path(request_.local_dir, file.path)
                     : join_path(join_path(storage(), "blobs"), file.etag()),
          is_local() ? join_path(storage(), "download/" + file.path + ".metadata")
                     : join_path(storage(), "snapshots/" + snapshot_.commit + "/" + file.path)};
      for (const std::string& path : paths) ::unlink(path.c_str());
    }
  }

  void check_free_space(int64_t num_bytes) const {
    struct statvfs disk {};
    if (::statvfs(root().c_str(), &disk) != 0) return;
    const auto free_bytes =
        static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
    FATHOM_CHECK(num_bytes <= free_bytes, request_.repo.name, " needs ", num_bytes, " bytes more, ",
                 root(), " has ", free_bytes, " left\n  fix: free space, or choose another disk");
  }

  Snapshot fall_back(const HubUnreachable& why) {
    try {
      Snapshot found = use_what_is_there("the Hub could not be reached");
      log_warning(why.what(), "; using ", found.path);
      return found;
    } catch (const UserError& e) {
      throw HubUnreachable(str_cat(why.what(), "\n  and without it: ", e.what()));
    }
  }

  Snapshot use_what_is_there(const std::string& reason) {
    const std::string who = request_.repo.name + " at " + request_.revision;
    if (is_commit(request_.revision)) {
      snapshot_.commit = request_.revision;
    } else if (snapshot_.commit.empty()) {
      snapshot_.commit =
          CacheLayout::read_ref(settings_.cache_dir, request_.repo, request_.revision).value_or("");
    }
    snapshot_.path = is_local() ? request_.local_dir
                                : join_path(join_path(storage(), "snapshots"), snapshot_.commit);
    const bool is_there = directory_exists(snapshot_.path) &&
                          (is_local() || !snapshot_.commit.empty()) &&
                          !list_directory(snapshot_.path).empty();
    FATHOM_CHECK(is_there, who, ": not downloaded yet, and ", reason,
                 "\n  fix: run it once with the network, or check HF_HUB_CACHE");
    if (is_local() && snapshot_.commit.empty()) snapshot_.commit = only_known_commit();
    const auto tree =
        snapshot_.commit.empty() ? std::nullopt : read_tree(storage(), snapshot_.commit);
    if (!tree) return std::move(snapshot_);  // there is no telling what is missing
    select(*tree);
    std::string missing;
    int64_t num_missing = 0;
    for (const SnapshotFile& f : snapshot_.files) {
      if (file_exists(join_path(snapshot_.path, f.file.path))) continue;
      if (++num_missing <= 3) missing += (missing.empty() ? "" : ", ") + f.file.path;
    }
    FATHOM_CHECK(num_missing == 0, who, ": incomplete snapshot in ", snapshot_.path, ": ",
                 num_missing, " files are missing (", missing, num_missing > 3 ? ", ..." : "",
                 "), and ", reason, "\n  fix: run the download again with the network");
    return std::move(snapshot_);
  }

  // A local directory keeps no names of revisions; one listing leaves no doubt.
  std::string only_known_commit() const {
    const std::string trees = join_path(storage(), "trees");
    if (!directory_exists(trees)) return "";
    std::vector<std::string> names = list_directory(trees);
    std::erase_if(names, [](const std::string& name) {
      return name.size() != 45 || !name.ends_with(".json") || !is_commit(name.substr(0, 40));
    });
    return names.size() == 1 ? names[0].substr(0, 40) : "";
  }

  const HubSettings& settings_;
  const SnapshotRequest& request_;
  Snapshot snapshot_;
};

}  // namespace

Snapshot download_snapshot(const HubSettings& settings, const SnapshotRequest& request,
                           const std::function<void(const TransferProgress&)>& report) {
  return Download(settings, request).run(report);
}

}  // namespace fathom::hub
