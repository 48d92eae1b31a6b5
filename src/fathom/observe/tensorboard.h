// TensorBoard event files: TFRecord framing around Event protocol buffers with scalar summaries.
//
// A record is u64 length, u32 masked CRC32C of the length, the bytes, u32 masked CRC32C of the
// bytes, little-endian; mask(c) = ((c >> 15) | (c << 17)) + 0xa282ead8.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "fathom/observe/metrics.h"

namespace fathom {

class TensorBoardWriter {
 public:
  /// Creates `directory`/events.out.tfevents.<time>.<host>.<pid>. Errors: UserError.
  explicit TensorBoardWriter(const std::string& directory);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  /// One event with all metrics of a step (finite ones), flushed.
  void write(int64_t step, const MetricList& metrics);

 private:
  void write_record(const std::string& bytes);
  std::FILE* file_ = nullptr;
};

/// CRC-32C (Castagnoli), as the record framing uses it.
uint32_t crc32c(const std::string& bytes);

}  // namespace fathom
