#include "fathom/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"

namespace fathom {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void throw_errno(const std::string& what, const std::string& path) {
  const int code = errno;
  std::string fix;
  if (code == ENOSPC || code == EDQUOT || code == EFBIG)
    fix = "\n  fix: free space on that disk, then run the same command again";
  if (code == EACCES || code == EROFS) fix = "\n  fix: choose a directory that you may write to";
  if (code == ENOENT || code == ENOTDIR) fix = "\n  fix: check the path; its directory must exist";
  throw UserError(str_cat(what, " ", path, ": ", std::strerror(code), fix));
}

void write_all(int fd, const void* data, int64_t num_bytes, const std::string& path) {
  const char* at = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = ::write(fd, at, static_cast<size_t>(std::min<int64_t>(num_bytes, 1 << 30)));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("cannot write", path);
    at += n;
    num_bytes -= n;
  }
}

}  // namespace

std::string read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_errno("cannot open", path);
  std::string bytes;
  struct stat info {};
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    bytes.reserve(static_cast<size_t>(info.st_size));
  }
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int code = errno;
      ::close(fd);
      errno = code;
      throw_errno("cannot read", path);
    }
    if (n == 0) break;
    bytes.append(buffer.data(), static_cast<size_t>(n));
  }
  ::close(fd);
  return bytes;
}

void write_file_atomic(const std::string& path, std::string_view bytes) {
  AtomicFileWriter writer(path);
  writer.write(bytes.data(), static_cast<int64_t>(bytes.size()));
  writer.finish();
}

void make_directories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  FATHOM_CHECK(!error, "cannot make the directory ", path, ": ", error.message(),
               "\n  fix: choose a directory that you may write to");
}

void sync_directory(const std::string& path) {
  const int fd = ::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw_errno("cannot open the directory", path);
  ::fsync(fd);
  ::close(fd);
}

bool file_exists(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

bool directory_exists(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

std::vector<std::string> list_directory(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  fs::directory_iterator it(path, error);
  FATHOM_CHECK(!error, "cannot list ", path, ": ", error.message());
  for (const auto& entry : it) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string join_path(std::string_view directory, std::string_view name) {
  return (fs::path(directory) / fs::path(name)).string();
}

std::string base_name(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  return fs::path(path).filename().string();
}

std::string parent_path(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

void remove_temporaries(const std::string& directory) {
  for (const std::string& name : list_directory(directory)) {
    if (!name.ends_with(".tmp")) continue;
    const std::string stem = name.substr(0, name.size() - 4);
    const size_t dot = stem.rfind('.');
    const bool is_ours = dot != std::string::npos && dot + 1 < stem.size() &&
                         stem.find_first_not_of("0123456789", dot + 1) == std::string::npos;
    if (is_ours) ::unlink(join_path(directory, name).c_str());
  }
}

AtomicFileWriter::AtomicFileWriter(std::string path)
    : path_(std::move(path)), temporary_path_(str_cat(path_, ".", ::getpid(), ".tmp")) {
  // A rename would replace a device or a directory by a file.
  struct stat info {};
  FATHOM_CHECK(::stat(path_.c_str(), &info) != 0 || S_ISREG(info.st_mode), "cannot write ", path_,
               ": it is there and is no regular file\n  fix: name a file");
  fd_ = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) throw_errno("cannot create", temporary_path_);
}

AtomicFileWriter::~AtomicFileWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_path_.c_str());
}

void AtomicFileWriter::write(const void* data, int64_t num_bytes) {
  write_all(fd_, data, num_bytes, path_);
  position_ += num_bytes;
}

void AtomicFileWriter::finish() {
  if (::fsync(fd_) != 0) throw_errno("cannot flush", path_);
  if (::close(fd_) != 0) {
    fd_ = -1;
    ::unlink(temporary_path_.c_str());
    throw_errno("cannot close", path_);
  }
  fd_ = -1;
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_path_.c_str());
    errno = code;
    throw_errno("cannot rename into", path_);
  }
  sync_directory(parent_path(path_));
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_errno("cannot open", path);
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw UserError(str_cat("cannot map ", path, ": not a regular file"));
  }
  size_ = info.st_size;
  if (size_ > 0) {
    void* address = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, fd, 0);
    const int code = errno;
    ::close(fd);
    errno = code;
    if (address == MAP_FAILED) throw_errno("cannot map", path);
    data_ = static_cast<const uint8_t*>(address);
  } else {
    ::close(fd);
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

FileReader::FileReader(const std::string& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw_errno("cannot open", path);
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    throw UserError(str_cat("cannot read ", path, ": not a regular file"));
  }
  size_ = info.st_size;
}

FileReader::~FileReader() { ::close(fd_); }

void FileReader::read(int64_t offset, int64_t num_bytes, void* out) const {
  char* to = static_cast<char*>(out);
  while (num_bytes > 0) {
    const ssize_t n =
        ::pread(fd_, to, static_cast<size_t>(std::min<int64_t>(num_bytes, 1 << 30)), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("cannot read", path_);
    FATHOM_CHECK(
        n > 0, path_, ": the file has become shorter while it was read: it ends at ", offset, ", ",
        size_, " bytes were there at first",
        "\n  fix: keep other programs from writing to it, then run the same command again");
    to += n;
    offset += n;
    num_bytes -= n;
  }
}

void FileReader::prefetch(int64_t offset, int64_t num_bytes) const {
  ::posix_fadvise(fd_, offset, num_bytes, POSIX_FADV_WILLNEED);
}

std::unique_ptr<FileLock> FileLock::try_acquire(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) throw_errno("cannot create the lock file", path);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd);
    return nullptr;
  }
  return std::unique_ptr<FileLock>(new FileLock(fd));
}

FileLock::~FileLock() { ::close(fd_); }

}  // namespace fathom
