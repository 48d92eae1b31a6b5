// A file that arrives in pieces, in any order, and survives the process that fetches it.
//
//   <stem>.<process id>-<8 hex digits>.incomplete          the bytes; holes where none have come
//   <stem>.<process id>-<8 hex digits>.incomplete.ranges   which have: JSON, replaced atomically
//
// A later process takes an abandoned pair over. Other programs' temporary files are left alone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom::hub {

class PartialFile {
 public:
  /// Takes over what an earlier process left for `stem` and `size`, else begins anew.
  /// @param stem path whose last part names the content, so equal stems have equal bytes.
  /// Errors: UserError when the directory cannot be written.
  static std::unique_ptr<PartialFile> open(const std::string& stem, int64_t size);

  /// Remembers what has arrived, unless the file was published or discarded.
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  /// Stores bytes at `offset`; safe from several threads. Errors: UserError (disk full).
  void write(int64_t offset, std::string_view bytes);
  /// [begin, end) of what has not arrived, upwards.
  std::vector<std::pair<int64_t, int64_t>> missing() const;
  int64_t bytes_present() const;
  /// Writes down what has arrived.
  void save();
  /// Forgets everything that arrived.
  void reset();
  const std::string& path() const { return path_; }
  /// Flushes the bytes and gives the file its name. Errors: UserError.
  void publish(const std::string& path);
  /// Removes it.
  void discard();

 private:
  PartialFile(std::string path, int fd, int64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  static std::unique_ptr<PartialFile> take_over(const std::string& path, int64_t size);
  void add_range(int64_t begin, int64_t end);
  std::string ranges_text() const;

  std::string path_;
  int fd_;
  int64_t size_;
  mutable std::mutex mutex_;
  std::map<int64_t, int64_t> present_;  // begin -> end, disjoint and not touching
  int64_t unsaved_bytes_ = 0;
};

}  // namespace fathom::hub
