#include "fathom/checkpoint/stream_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/pickle_tensor.h"
#include "fathom/checkpoint/zip_crc.h"

namespace fathom {
namespace {

constexpr int kWaitingThreads = 2, kMaxThreads = 48;
constexpr double kSecondsBetweenLines = 10, kSecondsOnTerminal = 0.5;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void throw_errno(const char* what, const std::string& path) {
  const int code = errno;
  const bool is_full = code == ENOSPC || code == EDQUOT || code == EFBIG;
  throw UserError(str_cat(what, " ", path, ": ", std::strerror(code),
                          is_full ? "\n  fix: free space on that disk, then run the same command "
                                    "again; finished files are kept"
                          : code == EACCES || code == EROFS
                              ? "\n  fix: choose a directory that you may write to"
                              : ""));
}

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 90) return str_cat(s, " s");
  if (s < 5400) return str_cat((s + 30) / 60, " min");
  return str_cat(s / 3600, " h ", s % 3600 / 60, " min");
}

}  // namespace

std::string bytes_text(int64_t n) {
  char text[32];
  const auto value = static_cast<double>(n);
  if (n >= 1'000'000'000) {
    std::snprintf(text, sizeof text, "%.2f GB", value / 1e9);
  } else if (n >= 1'000'000) {
    std::snprintf(text, sizeof text, "%.1f MB", value / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%lld bytes", static_cast<long long>(n));
  }
  return text;
}

// ---- ByteProgress
// -----------------------------------------------------------------------------------

ByteProgress::ByteProgress(std::string what, int64_t total_bytes)
    : what_(std::move(what)),
      total_bytes_(total_bytes),
      is_terminal_(::isatty(2) == 1),
      begin_(now_seconds()),
      last_shown_(begin_) {}

void ByteProgress::add(int64_t num_bytes) {
  done_.fetch_add(num_bytes);
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return;  // another thread is about to show it
  const double now = now_seconds();
  if (now - last_shown_ < (is_terminal_ ? kSecondsOnTerminal : kSecondsBetweenLines)) return;
  last_shown_ = now;
  show(now - begin_);
}

void ByteProgress::show(double seconds) {
  const int64_t done = done_.load() + others_.load();
  const double rate = static_cast<double>(done) / std::max(seconds, 1e-3);
  const double left =
      static_cast<double>(std::max<int64_t>(0, total_bytes_ - done)) / std::max(rate, 1.0);
  const auto percent = static_cast<int64_t>(
      100.0 * static_cast<double>(done) / static_cast<double>(std::max<int64_t>(1, total_bytes_)));
  const std::string line =
      str_cat(what_, ": ", std::min<int64_t>(100, percent), "% of ", bytes_text(total_bytes_), ", ",
              bytes_text(static_cast<int64_t>(rate)), "/s, ", duration_text(left), " left");
  if (is_terminal_) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
  } else {
    log_line(line);
  }
}

void ByteProgress::finish() {
  const std::lock_guard lock(mutex_);
  if (is_terminal_ && last_shown_ != begin_) std::fputs("\r\033[K", stderr);
}

const FileReader& SourceFiles::get(const std::string& path) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<FileReader>& file = files_[path];
  if (!file) file = std::make_unique<FileReader>(path);
  return *file;
}

// ---- StreamWriter -------------------------------------------------------------------------------

struct StreamWriter::OpenFile {
  std::string path;
  int fd = -1;
  ~OpenFile() {
    if (fd >= 0) ::close(fd);
  }
};

StreamWriter::StreamWriter(std::vector<StreamFile> files, std::vector<StreamItem> items,
                           const std::vector<bool>& wanted)
    : files_(std::move(files)),
      items_(std::move(items)),
      items_left_(files_.size()),
      open_(files_.size()) {
  for (const StreamItem& item : items_) items_left_[item.file].fetch_add(1);
  for (size_t i = 0; i < files_.size(); ++i) {
    if (wanted[i] && items_left_[i].load() == 0) {
      open(i);
      finish_file(i);
    }
  }
}

StreamWriter::~StreamWriter() = default;

StreamWriter::OpenFile& StreamWriter::open(size_t index) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<OpenFile>& file = open_[index];
  if (file) return *file;
  const StreamFile& wanted = files_[index];
  file = std::make_unique<OpenFile>();
  file->path = temporary_path(wanted.path);
  file->fd = ::open(file->path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (file->fd < 0) throw_errno("cannot create", file->path);
  FATHOM_CHECK(::flock(file->fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK,
               "another process is writing ", file->path, "\n  fix: wait for it, or end it");
  if (::ftruncate(file->fd, 0) != 0) throw_errno("cannot empty", file->path);
  // All of its blocks at once: a full disk is found before the work, and the file is in one piece.
  if (wanted.num_bytes > 0 && ::fallocate(file->fd, 0, 0, wanted.num_bytes) != 0 &&
      (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
    throw_errno("cannot write", file->path);
  }
  if (!wanted.start.empty()) {
    write_at(*file, 0, {{wanted.start.data(), static_cast<int64_t>(wanted.start.size())}});
  }
  return *file;
}

void StreamWriter::write_at(OpenFile& file, int64_t offset,
                            const std::vector<std::pair<const void*, int64_t>>& runs) {
  std::vector<iovec> vectors;
  for (const auto& [data, n] : runs) {
    if (n > 0) vectors.push_back({const_cast<void*>(data), static_cast<size_t>(n)});
  }
  const int64_t begin = offset;
  for (size_t at = 0; at < vectors.size();) {
    const ssize_t n =
        ::pwritev(file.fd, vectors.data() + at, static_cast<int>(vectors.size() - at), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("cannot write", file.path);
    offset += n;
    for (auto left = static_cast<size_t>(n); left > 0;) {
      const size_t used = std::min(left, vectors[at].iov_len);
      vectors[at].iov_base = static_cast<char*>(vectors[at].iov_base) + used;
      vectors[at].iov_len -= used;
      left -= used;
      if (vectors[at].iov_len == 0) ++at;
    }
  }
  num_bytes_.fetch_add(offset - begin);
  // The disk starts now; the flush at the end then has little left to do.
  if (offset - begin >= (1 << 20)) {
    ::sync_file_range(file.fd, begin, offset - begin, SYNC_FILE_RANGE_WRITE);
  }
}

void StreamWriter::put(size_t index, int64_t begin, const void* data, int64_t num_bytes) {
  const StreamItem& item = items_[index];
  OpenFile& file = open(item.file);
  std::vector<std::pair<const void*, int64_t>> runs;
  TensorArchiveFrame frame;
  int64_t offset = item.offset + begin;
  uint32_t crc = 0;
  const bool is_whole = num_bytes == item.num_bytes;
  if (item.is_framed) {
    crc = crc32(0, data, num_bytes);
    if (begin == 0) {
      // The tail of an item in one part goes with it; the head never depends on the CRC.
      frame = tensor_archive_frame(item.dtype, item.shape, item.alignment, crc);
      runs.emplace_back(frame.head.data(), static_cast<int64_t>(frame.head.size()));
      offset -= static_cast<int64_t>(frame.head.size());
    }
  }
  runs.emplace_back(data, num_bytes);
  if (item.is_framed && is_whole) {
    runs.emplace_back(frame.tail.data(), static_cast<int64_t>(frame.tail.size()));
  }
  write_at(file, offset, runs);
  if (is_whole) return finish_item(index, crc, /*with_tail=*/false);

  ItemState done;
  {
    const std::lock_guard lock(mutex_);
    ItemState& state = partial_[index];
    state.parts.push_back({begin, num_bytes, crc});
    state.num_bytes += num_bytes;
    if (state.num_bytes < item.num_bytes) return;
    done = std::move(state);
    partial_.erase(index);
  }
  std::sort(done.parts.begin(), done.parts.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  uint32_t all = 0;
  int64_t next = 0;
  for (const Part& part : done.parts) {
    FATHOM_ASSERT(part.begin == next, file.path, ": parts of an item overlap");
    all = next == 0 ? part.crc : crc32_combine(all, part.crc, part.num_bytes);
    next += part.num_bytes;
  }
  finish_item(index, all, item.is_framed);
}

void StreamWriter::finish_item(size_t index, uint32_t crc, bool with_tail) {
  const StreamItem& item = items_[index];
  if (with_tail) {
    const TensorArchiveFrame frame =
        tensor_archive_frame(item.dtype, item.shape, item.alignment, crc);
    write_at(open(item.file), item.offset + item.num_bytes,
             {{frame.tail.data(), static_cast<int64_t>(frame.tail.size())}});
  }
  if (items_left_[item.file].fetch_sub(1) == 1) finish_file(item.file);
}

void StreamWriter::finish_file(size_t index) {
  const StreamFile& wanted = files_[index];
  OpenFile& file = *open_[index];
  if (::ftruncate(file.fd, wanted.num_bytes) != 0) throw_errno("cannot size", file.path);
  if (::fsync(file.fd) != 0) throw_errno("cannot flush", file.path);
  if (::close(std::exchange(file.fd, -1)) != 0) throw_errno("cannot close", file.path);
  if (::rename(file.path.c_str(), wanted.path.c_str()) != 0) {
    throw_errno("cannot rename into", wanted.path);
  }
  sync_directory(parent_path(wanted.path));
  if (on_finished_) on_finished_(index);
}

void StreamWriter::discard() {
  for (const auto& file : open_) {
    if (file && file->fd >= 0) ::unlink(file->path.c_str());
  }
}

// ---- Tasks --------------------------------------------------------------------------------------

int num_stream_threads(int num_cores) { return std::min(num_cores + kWaitingThreads, kMaxThreads); }

void run_stream_tasks(int num_threads, int64_t count,
                      const std::function<void(int64_t task, int thread)>& make) {
  ThreadPool pool(num_threads);
  std::atomic<int64_t> next{0};
  pool.parallel_for(num_threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (;;) {
        const int64_t task = next.fetch_add(1);
        if (task >= count) break;
        try {
          make(task, static_cast<int>(thread));
        } catch (...) {
          next.store(count);
          throw;
        }
      }
    }
  });
}

void check_free_space(const std::string& command, const std::string& directory, int64_t num_bytes,
                      const std::string& option) {
  make_directories(directory);
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(directory, error);
  if (error) return;  // not every file system tells; writing will
  const auto available = static_cast<int64_t>(std::min<uint64_t>(space.available, INT64_MAX));
  FATHOM_CHECK(available >= num_bytes, command, ": ", directory, " has ", available,
               " bytes free, ", num_bytes, " are needed",
               "\n  fix: free space there, or give another directory with ", option);
}

}  // namespace fathom
