// The zip container of torch.save: every record stored, its data aligned, sizes and CRC after it.
//
// The writer makes the bytes that torch 2.11 makes, record for record; it streams, so a record of
// any size passes through in pieces. The reader trusts the central directory alone, as torch does,
// and takes a damaged or hostile archive for an error, never for a crash.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// Takes the next bytes of a stream.
using ByteSink = std::function<void(const void* data, int64_t num_bytes)>;

class TorchArchiveWriter {
 public:
  static constexpr int64_t kAlignment = 64;  // of every record's data, from the archive's start

  /// @param prefix first path component of every record: "archive" for streams, the file's stem
  /// for files.
  TorchArchiveWriter(std::string prefix, ByteSink sink);

  /// A whole record. `alignment` is a power of two, at most 4096.
  void add(std::string_view name, std::string_view data, int64_t alignment = kAlignment);

  /// A record in pieces: exactly `num_bytes` bytes have to come between begin and end.
  void begin(std::string_view name, int64_t num_bytes, int64_t alignment = kAlignment);
  void write(const void* data, int64_t num_bytes);
  /// The open record's bytes go elsewhere: counts them, and passes nothing to the sink.
  /// @param crc of those bytes.
  void skip(int64_t num_bytes, uint32_t crc);
  void end();

  /// Adds the serialization id, the central directory and the end records.
  void finish();

  int64_t position() const { return position_; }  // bytes written so far

 private:
  struct Entry {
    std::string name;  // with prefix
    uint32_t crc = 0;
    int64_t size = 0, header_offset = 0;
  };
  void emit(std::string_view bytes);
  void add_serialization_id();

  std::string prefix_;
  ByteSink sink_;
  std::vector<Entry> entries_;
  std::string record_names_;          // without prefix, each followed by '\n'
  uint64_t combined_crc_ = 0;         // part of the serialization id
  int64_t position_ = 0, left_ = -1;  // bytes of the open record still to come; -1: none open
};

struct ZipRecord {
  std::string name;  // without the prefix
  std::span<const uint8_t> data;
  uint32_t crc = 0;
};

class TorchArchiveReader {
 public:
  /// @param bytes one whole archive, which must outlive the reader.
  /// @param origin for messages.
  /// Errors: UserError for anything that is not a torch.save archive: no end record, an entry that
  /// is compressed, encrypted, outside, overlapping or badly named, too many entries, no `version`
  /// record, a TorchScript archive.
  TorchArchiveReader(std::span<const uint8_t> bytes, std::string origin, int64_t max_entries = 64);

  const std::vector<ZipRecord>& records() const { return records_; }
  const ZipRecord* find(std::string_view name) const;  // null: none
  /// Errors: UserError when there is no such record.
  const ZipRecord& get(std::string_view name) const;
  /// Errors: UserError when the data does not have the stored CRC.
  void verify(const ZipRecord& record) const;

 private:
  std::string origin_;
  std::vector<ZipRecord> records_;
};

}  // namespace fathom
