#include "fathom/hub/partial_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/base/log.h"

namespace fathom::hub {
namespace {

constexpr int64_t kSaveEvery = int64_t{32} << 20;  // bytes that a kill may cost
constexpr char kSuffix[] = ".incomplete", kRangesSuffix[] = ".ranges";

std::string random_hex() {
  std::random_device device;
  char text[9];
  std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(device()));
  return text;
}

[[noreturn]] void fail(const char* what, const std::string& path) {
  const int code = errno;
  throw UserError(str_cat(what, " ", path, ": ", std::strerror(code),
                          code == ENOSPC ? "\n  fix: free space on that disk, then run the same "
                                           "command again: it goes on where it was"
                                         : ""));
}

// "<name>.<digits>-<8 hex>.incomplete"
bool is_own_name(std::string_view entry, std::string_view name) {
  if (!entry.starts_with(name) || !entry.ends_with(kSuffix)) return false;
  entry.remove_prefix(name.size());
  entry.remove_suffix(sizeof kSuffix - 1);
  if (!entry.starts_with('.')) return false;
  const size_t dash = entry.find('-');
  return dash != std::string_view::npos && dash > 1 && entry.size() == dash + 9 &&
         entry.substr(1, dash - 1).find_first_not_of("0123456789") == std::string_view::npos &&
         entry.substr(dash + 1).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace

std::unique_ptr<PartialFile> PartialFile::open(const std::string& stem, int64_t size) {
  const std::string directory = parent_path(stem), name = base_name(stem);
  for (const std::string& entry : list_directory(directory)) {
    if (!is_own_name(entry, name)) continue;
    if (auto found = take_over(join_path(directory, entry), size)) return found;
  }
  const std::string path = str_cat(stem, ".", ::getpid(), "-", random_hex(), kSuffix);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) fail("cannot create", path);
  ::flock(fd, LOCK_EX | LOCK_NB);  // tells others that it is in use
  std::unique_ptr<PartialFile> partial(new PartialFile(path, fd, size));
  if (::ftruncate(fd, size) != 0) fail("cannot make room for", path);
  return partial;
}

std::unique_ptr<PartialFile> PartialFile::take_over(const std::string& path, int64_t size) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return nullptr;
  struct stat info {};
  const bool is_free =
      ::flock(fd, LOCK_EX | LOCK_NB) == 0 && ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  if (!is_free) {
    ::close(fd);
    return nullptr;
  }
  std::unique_ptr<PartialFile> partial(new PartialFile(path, fd, size));
  try {
    const Json record = read_json_file(path + kRangesSuffix);
    FATHOM_CHECK(record.at("size") == size && info.st_size == size, "another size");
    for (const Json& range : record.at("ranges")) {
      const int64_t begin = range.at(0).get<int64_t>(), end = range.at(1).get<int64_t>();
      FATHOM_CHECK(0 <= begin && begin < end && end <= size, "a range outside");
      partial->add_range(begin, end);
    }
    log_info("going on with ", path, ": ", partial->bytes_present(), " of ", size,
             " bytes are there");
    return partial;
  } catch (const std::exception&) {  // without a sound record the bytes are worth nothing
    partial->discard();
    return nullptr;
  }
}

PartialFile::~PartialFile() {
  if (fd_ < 0) return;
  try {
    if (bytes_present() > 0)
      save();
    else
      discard();
  } catch (const std::exception& e) {
    log_warning("what arrived of ", path_, " is not written down: ", e.what());
  }
  if (fd_ >= 0) ::close(fd_);
}

void PartialFile::add_range(int64_t begin, int64_t end) {
  auto it = present_.upper_bound(begin);
  if (it != present_.begin() && std::prev(it)->second >= begin) {
    --it;
    begin = it->first;
    end = std::max(end, it->second);
    it = present_.erase(it);
  }
  while (it != present_.end() && it->first <= end) {
    end = std::max(end, it->second);
    it = present_.erase(it);
  }
  present_.emplace(begin, end);
}

void PartialFile::write(int64_t offset, std::string_view bytes) {
  const auto count = static_cast<int64_t>(bytes.size());
  FATHOM_ASSERT(offset >= 0 && count <= size_ - offset, "bytes outside of the file");
  for (int64_t done = 0; done < count;) {
    const ssize_t n =
        ::pwrite(fd_, bytes.data() + done, static_cast<size_t>(count - done), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot write", path_);
    done += n;
  }
  bool is_due = false;
  {
    const std::lock_guard lock(mutex_);
    if (count > 0) add_range(offset, offset + count);
    unsaved_bytes_ += count;
    is_due = unsaved_bytes_ >= kSaveEvery;
  }
  if (is_due) save();
}

std::vector<std::pair<int64_t, int64_t>> PartialFile::missing() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<int64_t, int64_t>> gaps;
  int64_t at = 0;
  for (const auto& [begin, end] : present_) {
    if (begin > at) gaps.emplace_back(at, begin);
    at = end;
  }
  if (at < size_) gaps.emplace_back(at, size_);
  return gaps;
}

int64_t PartialFile::bytes_present() const {
  const std::lock_guard lock(mutex_);
  int64_t total = 0;
  for (const auto& [begin, end] : present_) total += end - begin;
  return total;
}

std::string PartialFile::ranges_text() const {
  Json ranges = Json::array();
  for (const auto& [begin, end] : present_) ranges.push_back({begin, end});
  return Json{{"size", size_}, {"ranges", std::move(ranges)}}.dump();
}

void PartialFile::save() {
  // Under the lock, so that an older record never replaces a newer one.
  const std::lock_guard lock(mutex_);
  write_file_atomic(path_ + kRangesSuffix, ranges_text());
  unsaved_bytes_ = 0;
}

void PartialFile::reset() {
  const std::lock_guard lock(mutex_);
  present_.clear();
  ::unlink((path_ + kRangesSuffix).c_str());
}

void PartialFile::publish(const std::string& path) {
  FATHOM_ASSERT(missing().empty(), "an incomplete file was to be published: ", path_);
  if (::fsync(fd_) != 0) fail("cannot write", path_);
  if (::rename(path_.c_str(), path.c_str()) != 0) fail("cannot create", path);
  ::unlink((path_ + kRangesSuffix).c_str());
  ::close(fd_);
  fd_ = -1;
  sync_directory(parent_path(path));
}

void PartialFile::discard() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());
  ::unlink((path_ + kRangesSuffix).c_str());
  ::close(fd_);
  fd_ = -1;
}

}  // namespace fathom::hub
