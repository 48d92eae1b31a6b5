#include "fathom/hub/cache_layout.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/hub/patterns.h"

namespace fathom::hub {
namespace fs = std::filesystem;

CacheLayout::CacheLayout(const std::string& cache_dir, const Repo& repo, const std::string& commit,
                         bool use_symlinks)
    : cache_dir_(cache_dir),
      folder_(repo.folder_name()),
      storage_(join_path(cache_dir, folder_)),
      snapshot_(join_path(join_path(storage_, "snapshots"), commit)),
      commit_(commit),
      use_symlinks_(use_symlinks) {}

std::optional<std::string> CacheLayout::read_ref(const std::string& cache_dir, const Repo& repo,
                                                 const std::string& revision) {
  check_path_is_safe(revision);
  const std::string path =
      join_path(join_path(join_path(cache_dir, repo.folder_name()), "refs"), revision);
  if (!file_exists(path)) return std::nullopt;
  const std::string commit = read_file(path);
  if (!is_commit(commit)) return std::nullopt;
  return commit;
}

void CacheLayout::write_ref(const std::string& revision) {
  if (revision == commit_) return;
  prepare();
  const std::string directory = make_directories_below(storage_, parent_path("refs/" + revision));
  const std::string path = join_path(directory, base_name(revision));
  if (!file_exists(path) || read_file(path) != commit_) write_file_atomic(path, commit_);
}

// Everything is made when there is something to write, so that asking leaves no traces.
void CacheLayout::prepare() {
  std::call_once(is_prepared_, [this] {
    make_directories(cache_dir_);
    write_cachedir_tag(cache_dir_);
    make_directories_below(cache_dir_, folder_);
    make_directories_below(storage_, "blobs");
    make_directories_below(storage_, "snapshots/" + commit_);
  });
}

std::string CacheLayout::find(const RepoFile& file) const {
  const std::string path = join_path(snapshot_, file.path);
  std::error_code error;
  const auto size = fs::file_size(path, error);  // of what a link points to
  return !error && fs::is_regular_file(path, error) && static_cast<int64_t>(size) == file.size
             ? path
             : "";
}

bool CacheLayout::has(const RepoFile& file) { return !find(file).empty(); }

std::string CacheLayout::lock_path(const RepoFile&, const std::string& etag) {
  prepare();
  return join_path(make_directories_below(cache_dir_, ".locks/" + folder_), etag + ".lock");
}

std::string CacheLayout::partial_stem(const RepoFile&, const std::string& etag) {
  return join_path(join_path(storage_, "blobs"), etag);
}

std::string CacheLayout::pointer_path(const RepoFile& file) {
  return join_path(make_directories_below(snapshot_, directory_of(file.path)),
                   base_name(file.path));
}

bool CacheLayout::adopt(const RepoFile& file, const std::string& etag) {
  const std::string blob = partial_stem(file, etag);
  std::error_code error;
  const auto size = fs::file_size(blob, error);
  if (error || static_cast<int64_t>(size) != file.size) return false;
  link(file, etag);
  return true;
}

void CacheLayout::publish(const RepoFile& file, const std::string& etag, PartialFile* partial) {
  partial->publish(partial_stem(file, etag));
  link(file, etag);
}

void CacheLayout::link(const RepoFile& file, const std::string& etag) {
  const std::string pointer = pointer_path(file);
  const std::string temporary = str_cat(pointer, ".", ::getpid(), ".tmp");
  ::unlink(temporary.c_str());
  if (use_symlinks_) {
    std::string target = "../../";
    for (const char c : file.path)
      if (c == '/') target += "../";
    target += "blobs/" + etag;
    if (::symlink(target.c_str(), temporary.c_str()) == 0) {
      FATHOM_CHECK(::rename(temporary.c_str(), pointer.c_str()) == 0, "cannot create ", pointer,
                   ": ", std::strerror(errno));
      return;
    }
    FATHOM_CHECK(errno == EPERM || errno == ENOTSUP || errno == ENOSYS, "cannot create ", pointer,
                 ": ", std::strerror(errno));
    log_warning(cache_dir_, " knows no symbolic links: snapshots hold copies");
    use_symlinks_ = false;
  }
  std::error_code error;
  fs::copy_file(partial_stem(file, etag), temporary, error);
  if (!error) fs::rename(temporary, pointer, error);
  FATHOM_CHECK(!error, "cannot create ", pointer, ": ", error.message());
}

}  // namespace fathom::hub
