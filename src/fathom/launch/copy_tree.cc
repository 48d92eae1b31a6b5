#include "fathom/launch/copy_tree.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPiece = int64_t{64} << 20;

bool is_sentinel(const std::string& path) {
  const std::string name = base_name(path);
  return name == kShardIndex || name == kTracker;
}

bool same_bytes(const std::string& a, const std::string& b) {
  std::error_code error;
  const auto size_a = fs::file_size(a, error), size_b = error ? 0 : fs::file_size(b, error);
  if (error || size_a != size_b) return false;
  if (size_a == 0) return true;
  const MappedFile left(a), right(b);
  return std::memcmp(left.data(), right.data(), static_cast<size_t>(left.size())) == 0;
}

/// Paths of all files below `directory`, relative to it, in order.
std::vector<std::string> files_below(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> files;
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error))
    if (it->is_directory() && it.depth() == 0 && it->path().filename() == ".cache")
      it.disable_recursion_pending();  // a Hub client's notes on this directory
    else if (it->is_regular_file())
      files.push_back(fs::relative(it->path(), directory).string());
  FATHOM_CHECK(!error, "cannot list ", directory, ": ", error.message());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

void remove_file(const std::string& path) {
  std::error_code error;
  fs::remove(path, error);
  FATHOM_CHECK(!error, "cannot remove ", path, ": ", error.message());
}

CopyResult copy_file(const std::string& from, const std::string& to) {
  CopyResult result;
  if (file_exists(to) && same_bytes(from, to)) {
    result.num_kept = 1;
    return result;
  }
  make_directories(parent_path(to));
  std::error_code error;
  result.num_bytes = static_cast<int64_t>(fs::file_size(from, error));
  FATHOM_CHECK(!error, "cannot read ", from, ": ", error.message());
  if (result.num_bytes == 0) {
    write_file_atomic(to, "");
  } else {
    const MappedFile source(from);
    AtomicFileWriter writer(to);
    for (int64_t at = 0; at < source.size(); at += kPiece)
      writer.write(source.data() + at, std::min(kPiece, source.size() - at));
    writer.finish();
  }
  FATHOM_CHECK(same_bytes(from, to), "the copy ", to, " does not read back as ", from,
               "\n  fix: check the disk, then run the same command again");
  result.num_copied = 1;
  return result;
}

bool is_copied(const std::string& from, const std::string& to) {
  FATHOM_CHECK(directory_exists(from), from, " is not there, it cannot be copied to ", to,
               "\n  fix: run the stage that makes it first, or full-train");
  const std::vector<std::string> files = files_below(from);
  return std::all_of(files.begin(), files.end(), [&](const std::string& file) {
    const std::string copy = join_path(to, file);
    return file_exists(copy) && same_bytes(join_path(from, file), copy);
  });
}

CopyResult copy_tree(const std::string& from, const std::string& to) {
  CopyResult result;
  const bool is_complete = is_copied(from, to);
  std::vector<std::string> files = files_below(from);
  if (is_complete) {
    result.num_kept = static_cast<int64_t>(files.size());
    return result;
  }
  std::stable_partition(files.begin(), files.end(),
                        [](const std::string& file) { return !is_sentinel(file); });
  make_directories(to);
  for (const std::string& file : files)
    if (is_sentinel(file)) remove_file(join_path(to, file));
  for (const std::string& file : files) {
    const CopyResult one = copy_file(join_path(from, file), join_path(to, file));
    result.num_copied += one.num_copied;
    result.num_bytes += one.num_bytes;
    result.num_kept += one.num_kept;
  }
  return result;
}

}  // namespace fathom
