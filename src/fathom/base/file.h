// Files: whole reads, atomic writes, locks, memory maps. Every error names the path and the reason.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// Errors: UserError when the file cannot be read.
std::string read_file(const std::string& path);

/// Replaces `path` by `bytes`: sibling temporary file, fsync, rename, fsync of the directory.
/// After a crash the file is either the old one or the new one, never a part.
/// Errors: UserError (disk full, no permission); the temporary file is removed.
void write_file_atomic(const std::string& path, std::string_view bytes);

/// Creates the directory and its parents. Errors: UserError.
void make_directories(const std::string& path);

/// fsync of a directory, so that renames inside it survive a crash.
void sync_directory(const std::string& path);

bool file_exists(const std::string& path);
bool directory_exists(const std::string& path);

/// Names (not paths) of the entries, sorted bytewise. Errors: UserError.
std::vector<std::string> list_directory(const std::string& path);

std::string join_path(std::string_view directory, std::string_view name);
std::string base_name(std::string_view path);    // "a/b/" -> "b"
std::string parent_path(std::string_view path);  // "a/b" -> "a", "b" -> "."

/// Removes "<name>.<process id>.tmp", what writers of killed processes left in `directory`. The
/// caller holds a lock that keeps living writers out.
void remove_temporaries(const std::string& directory);

/// A sequential writer to a new file. Call finish() once everything is written: it flushes, fsyncs
/// and renames into place. Destroyed before that, it removes what it wrote.
class AtomicFileWriter {
 public:
  explicit AtomicFileWriter(std::string path);
  ~AtomicFileWriter();
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;
  void write(const void* data, int64_t num_bytes);
  int64_t position() const { return position_; }
  void finish();

 private:
  std::string path_, temporary_path_;
  int fd_ = -1;
  int64_t position_ = 0;
};

/// A read-only memory map of a whole file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

/// Reads ranges of one file. Any number of threads may read at once.
class FileReader {
 public:
  /// Errors: UserError when the file cannot be opened.
  explicit FileReader(const std::string& path);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when it was opened
  /// Errors: UserError when the file ends before offset + num_bytes, or cannot be read.
  void read(int64_t offset, int64_t num_bytes, void* out) const;
  /// The range will be read soon: the disk may begin.
  void prefetch(int64_t offset, int64_t num_bytes) const;

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

/// An exclusive advisory lock (flock) on `path`, held until destroyed; the kernel drops it when the
/// process dies. Returns null when another process holds it. Errors: UserError when the file cannot
/// be made.
class FileLock {
 public:
  static std::unique_ptr<FileLock> try_acquire(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace fathom
