// Writes large files from many small tasks, in bounded memory: threads take the tasks in order,
// each makes some bytes in its own buffers and puts them where they belong.
//
// A file is written under its temporary name, flushed when its last byte is there, and renamed. So
// a file under its own name is whole, and a run that was killed goes on with the files that it
// lacks.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/numerics/dtype.h"

namespace fathom {

/// A file to be.
struct StreamFile {
  std::string path;
  int64_t num_bytes = 0;
  std::string start;  // bytes at its beginning that no item brings (a header)
};

/// A run of bytes in a file. Framed: a tensor archive (pickle_tensor.h) around them.
struct StreamItem {
  size_t file = 0;
  int64_t offset = 0;     // of the data, behind the frame's head
  int64_t num_bytes = 0;  // of the data
  bool is_framed = false;
  DType dtype = DType::kF32;   // framed: what the archive says
  std::vector<int64_t> shape;  // likewise
  int64_t alignment = 64;      // likewise
};

/// Counts bytes for a line every few seconds: how much, how fast, how long still.
class ByteProgress {
 public:
  /// @param what names the work. @param total_bytes of input and output together.
  ByteProgress(std::string what, int64_t total_bytes);
  /// Adds bytes and shows a line when it is time. Safe from any thread.
  void add(int64_t num_bytes);
  /// Work of other processes, that the line counts in.
  void set_others(int64_t num_bytes) { others_.store(num_bytes); }
  /// Ends the line on a terminal.
  void finish();
  int64_t num_bytes() const { return done_.load(); }

 private:
  void show(double seconds);
  std::string what_;
  int64_t total_bytes_;
  bool is_terminal_;
  std::atomic<int64_t> done_{0}, others_{0};
  std::mutex mutex_;
  double begin_, last_shown_;
};

/// The files of a directory tree that sources are read from; opened once each.
class SourceFiles {
 public:
  const FileReader& get(const std::string& path);

 private:
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<FileReader>> files_;
};

class StreamWriter {
 public:
  /// @param wanted files that are to be written; items and tasks of others are not touched.
  StreamWriter(std::vector<StreamFile> files, std::vector<StreamItem> items,
               const std::vector<bool>& wanted);
  ~StreamWriter();
  StreamWriter(const StreamWriter&) = delete;
  StreamWriter& operator=(const StreamWriter&) = delete;

  /// Puts a part of an item in place. Parts come in any order from any thread, each once; the file
  /// is finished with its last part.
  /// Errors: UserError (disk full, no permission).
  void put(size_t item, int64_t begin, const void* data, int64_t num_bytes);
  /// Called with the index of a file that is whole and under its name.
  void on_finished(std::function<void(size_t file)> call) { on_finished_ = std::move(call); }

  /// Bytes written so far.
  int64_t num_bytes() const { return num_bytes_.load(); }
  /// Removes what is under temporary names; for a run that failed.
  void discard();

  static std::string temporary_path(const std::string& path) { return path + ".tmp"; }

 private:
  struct OpenFile;
  struct Part {
    int64_t begin, num_bytes;
    uint32_t crc;
  };
  struct ItemState {
    std::vector<Part> parts;
    int64_t num_bytes = 0;
  };
  OpenFile& open(size_t file);
  void finish_item(size_t item, uint32_t crc, bool with_tail);
  void finish_file(size_t file);
  void write_at(OpenFile& file, int64_t offset,
                const std::vector<std::pair<const void*, int64_t>>& runs);

  std::vector<StreamFile> files_;
  std::vector<StreamItem> items_;
  std::vector<std::atomic<int64_t>> items_left_;  // of each file
  std::vector<std::unique_ptr<OpenFile>> open_;
  std::map<size_t, ItemState> partial_;  // items whose parts are not all there
  std::mutex mutex_;
  std::atomic<int64_t> num_bytes_{0};
  std::function<void(size_t)> on_finished_;
};

/// Runs tasks 0 .. count - 1 in order on `num_threads` threads; the first error stops the others
/// and is thrown. @param make(task, thread).
void run_stream_tasks(int num_threads, int64_t count,
                      const std::function<void(int64_t task, int thread)>& make);

/// Threads for a stream of tasks on a machine with so many cores: some more, so that all cores have
/// work while some threads wait for the disk.
int num_stream_threads(int num_cores);

/// Errors: UserError when the file system of `directory` (made if missing) has less than
/// `num_bytes` free.
void check_free_space(const std::string& command, const std::string& directory, int64_t num_bytes,
                      const std::string& option);

/// "12.3 GB", "740 MB".
std::string bytes_text(int64_t num_bytes);

}  // namespace fathom
