// Rows of a stored tensor on their way into output files: what to read, how to convert, where to
// put each part. The tasks of a conversion are a list of these, in the order of the source's bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/checkpoint/decode.h"
#include "fathom/checkpoint/stream_files.h"

namespace fathom {

/// What the elements become.
enum class RowTarget { kAsDecoded, kBF16, kF32, kExpertTable };

/// A box of the tensor's rows and columns that is a run of rows in an item.
struct RowOutput {
  size_t item = 0;
  int64_t item_row = 0;  // where its first row goes
  int64_t row_begin = 0, row_end = 0, col_begin = 0, col_end = 0;
};

struct RowTask {
  const EncodedTensor* tensor = nullptr;
  int64_t row_begin = 0, row_end = 0;  // of one matrix
  RowTarget target = RowTarget::kAsDecoded;
  uint32_t output_begin = 0, output_end = 0;  // in RowTasks::outputs
};

struct RowTasks {
  std::vector<RowTask> tasks;
  std::vector<RowOutput> outputs;
  int64_t num_experts = 0;  // for kExpertTable

  /// Cuts rows [begin, end) of `tensor` into tasks of about `piece_bytes` of output. The boxes of
  /// `outputs` lie inside; each task puts what it has of each of them.
  void add(const EncodedTensor& tensor, int64_t begin, int64_t end, RowTarget target,
           const std::vector<RowOutput>& outputs, int64_t piece_bytes);
};

/// Size of an element in the output.
int64_t row_item_size(const EncodedTensor& tensor, RowTarget target);

/// Bytes that a task reads and writes.
int64_t row_task_bytes(const RowTask& task);

/// Executes row tasks. One per conversion; run() may be called by several threads at once, each
/// with its own number.
class RowConverter {
 public:
  /// @param check_finite refuse NaN and infinite values of floating point tensors.
  RowConverter(const ExecContext& ctx, const RowTasks& tasks, StreamWriter& writer,
               bool check_finite, int num_threads);
  ~RowConverter();
  /// @return bytes read and written.
  int64_t run(int64_t task, int thread);
  /// Says that a task comes soon, so that its bytes can be read ahead.
  void prefetch(int64_t task);
  int64_t num_bytes_put() const { return num_bytes_put_.load(); }

 private:
  struct Buffers;
  const uint8_t* convert(const RowTask& task, const uint8_t* decoded, Buffers& buffers);
  const ExecContext& ctx_;
  const RowTasks& tasks_;
  StreamWriter& writer_;
  bool check_finite_;
  std::atomic<int64_t> num_bytes_put_{0};
  SourceFiles sources_;
  std::vector<std::unique_ptr<Buffers>> buffers_;
};

}  // namespace fathom
