#include "fathom/checkpoint/dcp_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/pickle_tensor.h"

namespace fathom {
namespace {

constexpr int64_t kItemAlignment = 64, kPage = 4096;
constexpr size_t kBufferSize = 1 << 20;

int64_t count_elements(const std::vector<int64_t>& sizes) {
  int64_t n = 1;
  for (int64_t s : sizes) n *= s;
  return n;
}

void remove_tree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  FATHOM_CHECK(!error, "cannot remove ", path, ": ", error.message(),
               "\n  fix: remove it by hand, or give a directory that you may write to");
}

[[noreturn]] void throw_errno(const char* what, const std::string& path) {
  const int code = errno;
  throw UserError(str_cat(what, " ", path, ": ", std::strerror(code),
                          code == ENOSPC ? "\n  fix: free space on that disk, then run the same "
                                           "command again"
                                         : ""));
}

}  // namespace

// A buffered, sequential file that is flushed to the disk when it is closed.
class DcpWriter::File {
 public:
  explicit File(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd_ < 0) throw_errno("cannot create", path_);
    buffer_.reserve(kBufferSize);
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int64_t position() const { return position_; }

  void write(const void* data, int64_t n) {
    position_ += n;
    if (buffer_.size() + static_cast<size_t>(n) > kBufferSize) drain();
    if (static_cast<size_t>(n) >= kBufferSize) {
      write_through(static_cast<const char*>(data), n);
    } else {
      buffer_.append(static_cast<const char*>(data), static_cast<size_t>(n));
    }
  }
  void pad_to(int64_t alignment) {
    const std::string zeros(static_cast<size_t>((alignment - position_ % alignment) % alignment),
                            '\0');
    write(zeros.data(), static_cast<int64_t>(zeros.size()));
  }
  void close() {
    drain();
    if (::fsync(fd_) != 0) throw_errno("cannot flush", path_);
    if (::close(std::exchange(fd_, -1)) != 0) throw_errno("cannot close", path_);
  }

 private:
  void drain() {
    write_through(buffer_.data(), static_cast<int64_t>(buffer_.size()));
    buffer_.clear();
  }
  void write_through(const char* at, int64_t n) {
    while (n > 0) {
      const ssize_t done = ::write(fd_, at, static_cast<size_t>(std::min<int64_t>(n, 1 << 30)));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) throw_errno("cannot write", path_);
      at += done;
      n -= done;
    }
  }

  std::string path_;
  int fd_ = -1;
  int64_t position_ = 0;
  std::string buffer_;
};

std::string PendingDirectory::resumable_path(const std::string& parent, const std::string& name,
                                             const std::string& tag) {
  return join_path(parent, str_cat(".", name, tag.empty() ? "" : ".", tag, ".partial"));
}

PendingDirectory::PendingDirectory(const std::string& parent, const std::string& name,
                                   const std::string& tag)
    : parent_(parent),
      final_path_(join_path(parent, name)),
      partial_path_(resumable_path(parent, name, tag)),
      is_resumable_(!tag.empty()) {
  make_directories(parent_);
  lock_ = FileLock::try_acquire(join_path(parent_, ".checkpoint.lock"));
  FATHOM_CHECK(lock_ != nullptr, "another process is writing a checkpoint into ", parent_,
               "\n  fix: wait for it, or give another directory");
  // Under the lock, every unfinished directory here is a dead process's.
  for (const std::string& entry : list_directory(parent_)) {
    const bool is_ours = is_resumable_ && entry == base_name(partial_path_);
    if (entry.starts_with(".") && entry.ends_with(".partial") && !is_ours) {
      remove_tree(join_path(parent_, entry));
    }
  }
  make_directories(partial_path_);
}

PendingDirectory::~PendingDirectory() {
  std::error_code ignored;
  if (published_) return;
  if (is_resumable_) {
    for (const auto& entry : std::filesystem::directory_iterator(partial_path_, ignored)) {
      if (entry.path().extension() == ".distcp") return;
    }
  }
  std::filesystem::remove_all(partial_path_, ignored);
}

void PendingDirectory::write(const std::string& name, std::string_view bytes) {
  const std::string path = file(name);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (fd < 0) throw_errno("cannot create", path);
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int code = errno;
      ::close(fd);
      errno = code;
      throw_errno("cannot write", path);
    }
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  const bool flushed = ::fsync(fd) == 0;
  const int code = errno;
  ::close(fd);
  errno = code;
  if (!flushed) throw_errno("cannot flush", path);
}

void PendingDirectory::publish() {
  sync_directory(partial_path_);
  if (directory_exists(final_path_)) {
    // Both names change hands at once; the old directory is then the unfinished one and goes.
    if (::renameat2(AT_FDCWD, partial_path_.c_str(), AT_FDCWD, final_path_.c_str(),
                    RENAME_EXCHANGE) != 0) {
      // A file system without the exchange: for an instant there is neither of the two.
      const std::string aside = join_path(parent_, ".replaced.partial");
      if (::rename(final_path_.c_str(), aside.c_str()) != 0)
        throw_errno("cannot move", final_path_);
      if (::rename(partial_path_.c_str(), final_path_.c_str()) != 0) {
        throw_errno("cannot rename into", final_path_);
      }
      partial_path_ = aside;
    }
    published_ = true;
    sync_directory(parent_);
    remove_tree(partial_path_);
    return;
  }
  if (::rename(partial_path_.c_str(), final_path_.c_str()) != 0) {
    throw_errno("cannot rename into", final_path_);
  }
  published_ = true;
  sync_directory(parent_);
}

DcpWriter::DcpWriter(const PendingDirectory& directory, const Options& options)
    : directory_(directory), options_(options) {}

DcpWriter::~DcpWriter() = default;

void DcpWriter::add_chunk(const std::string& key, DType dtype, const std::vector<int64_t>& shape,
                          const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes,
                          const ElementSource& elements) {
  DcpTensor& t = metadata_.tensors[key];
  if (t.chunks.empty()) {
    t.dtype = dtype;
    t.shape = shape;
  }
  FATHOM_ASSERT(t.dtype == dtype && t.shape == shape, key, ": boxes of different tensors");
  if (!file_) {
    file_name_ = str_cat("__", options_.rank, "_", num_files_++, ".distcp");
    file_ = std::make_unique<File>(directory_.file(file_name_));
  }
  const bool on_pages = count_elements(sizes) * dtype_size(dtype) >= options_.page_aligned_from;
  const int64_t alignment = on_pages ? kPage : kItemAlignment;
  file_->pad_to(alignment);
  DcpChunk chunk{offsets, sizes, file_name_, file_->position(), 0};
  chunk.length = write_tensor_archive(dtype, sizes, elements, alignment,
                                      [&](const void* p, int64_t n) { file_->write(p, n); });
  num_bytes_ += chunk.length;
  t.chunks.push_back(std::move(chunk));
  file_sizes_[file_name_] = file_->position();
  if (file_->position() >= options_.max_file_bytes) {
    file_->close();
    file_.reset();
  }
}

void DcpWriter::add_chunk(const std::string& key, DType dtype, const std::vector<int64_t>& shape,
                          const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes,
                          const void* data) {
  add_chunk(key, dtype, shape, offsets, sizes,
            [&](const ByteSink& sink) { sink(data, count_elements(sizes) * dtype_size(dtype)); });
}

void DcpWriter::add(const std::string& key, DType dtype, const std::vector<int64_t>& shape,
                    const void* data) {
  add_chunk(key, dtype, shape, std::vector<int64_t>(shape.size(), 0), shape, data);
}

void DcpWriter::add_alias(const std::string& key, const std::string& existing_key) {
  const auto it = metadata_.tensors.find(existing_key);
  FATHOM_ASSERT(it != metadata_.tensors.end(), existing_key);
  metadata_.tensors.emplace(key, DcpTensor(it->second));
}

DcpMetadata DcpWriter::finish() {
  if (file_) {
    file_->close();
    file_.reset();
  }
  validate_dcp_metadata(metadata_, file_sizes_, directory_.path());
  return std::move(metadata_);
}

void write_dcp_headers(PendingDirectory& directory, DcpMetadata metadata,
                       const std::string& checkpoint_id, const std::string& save_id,
                       std::string_view common_pt) {
  metadata.checkpoint_id = checkpoint_id;
  metadata.save_id = save_id;
  directory.write("common.pt", common_pt);
  directory.write(".metadata", encode_dcp_metadata(metadata));
  directory.write("metadata.json", metadata_json_text());
}

}  // namespace fathom
