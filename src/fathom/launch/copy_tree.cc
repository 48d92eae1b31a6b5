#include "fathom/launch/copy_tree.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <memory>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"

namespace fathom {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPiece = int64_t{8} << 20;

bool is_sentinel(const std::string& path) {
  const std::string name = base_name(path);
  return name == kShardIndex || name == kTracker;
}

struct FileFacts {
  int64_t size = -1;  // -1: not there
  timespec modified{};
};

FileFacts facts_of(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return {};
  return {info.st_size, info.st_mtim};
}

bool same_time(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/// Calls take(data, bytes) for all bytes of the file, piece by piece.
template <typename Take>
void for_each_piece(const std::string& path, int64_t size, Take&& take) {
  const FileReader file(path);
  std::vector<char> piece(static_cast<size_t>(std::min(kPiece, std::max<int64_t>(size, 1))));
  for (int64_t at = 0; at < size; at += kPiece) {
    const int64_t n = std::min(kPiece, size - at);
    file.prefetch(at + n, std::min(kPiece, std::max<int64_t>(0, size - at - n)));
    file.read(at, n, piece.data());
    take(piece.data(), n);
  }
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) {
    FATHOM_ASSERT(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void add(const void* data, int64_t n) {
    FATHOM_ASSERT(EVP_DigestUpdate(context_.get(), data, static_cast<size_t>(n)) == 1);
  }
  std::array<uint8_t, 32> finish() {
    std::array<uint8_t, 32> hash{};
    FATHOM_ASSERT(EVP_DigestFinal_ex(context_.get(), hash.data(), nullptr) == 1);
    return hash;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

/// Whether `to` is a copy of `from`: verified by an earlier copy, or equal byte by byte.
bool is_copy(const std::string& from, const std::string& to) {
  const FileFacts a = facts_of(from), b = facts_of(to);
  if (a.size < 0 || a.size != b.size) return false;
  if (same_time(a.modified, b.modified)) return true;
  const FileReader left(from), right(to);
  std::vector<char> x(static_cast<size_t>(std::min(kPiece, a.size))), y(x.size());
  for (int64_t at = 0; at < a.size; at += kPiece) {
    const int64_t n = std::min(kPiece, a.size - at);
    left.read(at, n, x.data());
    right.read(at, n, y.data());
    if (std::memcmp(x.data(), y.data(), static_cast<size_t>(n)) != 0) return false;
  }
  return true;
}

/// Out of the page cache, so that it is the disk that is read back.
void forget(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

void check_space(const std::string& to, int64_t num_bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(to, error);
  if (error) return;  // not every file system tells; writing will
  const auto available = static_cast<int64_t>(std::min<uint64_t>(space.available, INT64_MAX));
  FATHOM_CHECK(available >= num_bytes, to, " has ", available, " bytes free, the copy needs ",
               num_bytes, "\n  fix: free space there, or give another --model-local-dir");
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
  if (is_copy(from, to)) {
    result.num_kept = 1;
    return result;
  }
  make_directories(parent_path(to));
  const FileFacts source = facts_of(from);
  FATHOM_CHECK(source.size >= 0, "cannot read ", from, ": not a regular file");
  result.num_bytes = source.size;
  Sha256 expected, got;
  {
    AtomicFileWriter writer(to);
    for_each_piece(from, source.size, [&](const char* data, int64_t n) {
      expected.add(data, n);
      writer.write(data, n);
    });
    writer.finish();
  }
  forget(to);
  for_each_piece(to, source.size, [&](const char* data, int64_t n) { got.add(data, n); });
  if (facts_of(to).size != source.size || expected.finish() != got.finish()) {
    remove_file(to);
    throw UserError(str_cat("the copy ", to, " does not read back as ", from,
                            "\n  fix: check the disk, then run the same command again"));
  }
  const FileFacts after = facts_of(from);
  FATHOM_CHECK(after.size == source.size && same_time(after.modified, source.modified), from,
               " has changed while it was copied\n  fix: run the same command again when nothing ",
               "writes to it");
  // From here on size and time say that this copy was verified.
  const timespec times[2] = {source.modified, source.modified};
  ::utimensat(AT_FDCWD, to.c_str(), times, 0);
  result.num_copied = 1;
  return result;
}

bool is_copied(const std::string& from, const std::string& to) {
  FATHOM_CHECK(directory_exists(from), from, " is not there, it cannot be copied to ", to,
               "\n  fix: run the stage that makes it first, or full-train");
  const std::vector<std::string> files = files_below(from);
  return std::all_of(files.begin(), files.end(), [&](const std::string& file) {
    return is_copy(join_path(from, file), join_path(to, file));
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
  int64_t missing = 0;
  for (const std::string& file : files) {
    const FileFacts source = facts_of(join_path(from, file)), copy = facts_of(join_path(to, file));
    // An older copy stays until the new one is whole.
    const bool is_there = copy.size == source.size && same_time(copy.modified, source.modified);
    if (!is_there) missing += source.size;
  }
  check_space(to, missing);
  for (const std::string& file : files)
    if (is_sentinel(file)) remove_file(join_path(to, file));
  int64_t shown = 0;
  for (const std::string& file : files) {
    const CopyResult one = copy_file(join_path(from, file), join_path(to, file));
    result.num_copied += one.num_copied;
    result.num_bytes += one.num_bytes;
    result.num_kept += one.num_kept;
    if (result.num_bytes - shown >= (int64_t{1} << 30)) {
      shown = result.num_bytes;
      log_info("copy: ", result.num_bytes / 1'000'000, " of ", missing / 1'000'000, " MB in ", to);
    }
  }
  return result;
}

}  // namespace fathom
